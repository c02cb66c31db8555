"""What the shipped model still says after each setting: the table of the README.

For every concept, kind of target, choice of Mergers and seed: train, save the adapter, and ask the
Hugging Face model about the held-out images; read each path with the readers. One JSON file, from
which `benchmarks.tables` writes the README's tables.
"""

import itertools
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import torch
import tyro
from rich.console import Console

import porting
from jax_unlearn.cli import ASSETS, Demo, demo_config
from jax_unlearn.config import FAITHFUL, RunConfig
from jax_unlearn.data.folder import read_image
from jax_unlearn.evaluate.answers import Question, ask_all, load_questions, score
from jax_unlearn.evaluate.vlm import VLM, ask, load_vlm
from jax_unlearn.session import Session, Sides
from jax_unlearn.targets import TARGETS
from jax_unlearn.train import train

RESULTS = Path(__file__).parent / "results" / "forgetting.json"


@dataclass
class Options:
    """Which settings to run; the defaults are the README's table."""

    concepts: tuple[str, ...] = ("astronaut", "triangle", "red triangle")
    targets: tuple[str, ...] = TARGETS
    mergers: tuple[str, ...] = ("merger", "all")
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = RESULTS
    checkpoint: Path = ASSETS / "checkpoint"
    overrides: tuple[str, ...] = ()
    """More settings of the run, as name=value in JSON."""


class Exam:
    """The held-out images of one concept and the questions about them."""

    def __init__(self, config: RunConfig, test: Sides, neighbours: list[str]) -> None:
        files = [*test.forget.files, *test.preserve.files]
        self.labels = np.array([file.label for file in files])
        self.is_forget = np.arange(len(files)) < len(test.forget.files)
        self.images = [read_image(file.path) for file in files]
        self.questions: list[Question] = load_questions(config.questions, self.labels.tolist())
        self.neighbours = neighbours

    def sit(self, vlm: VLM) -> dict[str, Any]:
        def put(rows: list[int], question: str) -> list[str]:
            return ask(vlm, [self.images[i] for i in rows], question, batch_size=256)

        answers = ask_all(put, self.questions, self.labels)
        return score(answers, self.labels, self.is_forget, self.neighbours)


def settings(options: Options) -> list[dict[str, Any]]:
    """The published scheme first, then every kind of target on the main Merger and on all."""
    extra = {k: json.loads(v) for k, v in (o.split("=", 1) for o in options.overrides)}
    grid = [
        {"targets": where, "target": kind} | extra
        for where, kind in itertools.product(options.mergers, options.targets)
    ]
    return [{"preset": "faithful", **FAITHFUL}, *grid]


def run_concept(concept: str, options: Options, console: Console) -> dict[str, Any]:
    config = replace(demo_config(Demo(concept=concept)), checkpoint=options.checkpoint)
    session = Session(config, console)
    sides = {"tokens": session.train_features("tokens")}
    sides["images"] = sides["tokens"].image_means()
    test = session.test_features()
    exam: Exam | None = None
    rows: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for setting, seed in itertools.product(settings(options), options.seeds):
        begun = time.perf_counter()
        session.config = replace(config, seed=seed, **setting)
        result = train(session.problem(sides[session.config.granularity]), session.config)
        trained = time.perf_counter() - begun
        read = session.evaluate(sides["images"], test, result.adapter)
        if exam is None:
            exam = Exam(config, test, read["neighbours"])
            before = exam.sit(load_vlm(config.checkpoint))
        with TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            porting.save_peft(
                result.adapter, adapter, base_model_name_or_path=str(config.checkpoint)
            )
            after = exam.sit(load_vlm(config.checkpoint, adapter))
        rows.append({"setting": setting, "seed": seed, "seconds": trained, "after": after, **read})
        console.print(
            f"{concept} {setting} seed {seed}: {brief(after)}, trained in {trained:.1f} s"
        )
    return {"concept": concept, "before": before, "rows": rows}


def brief(scores: dict[str, Any]) -> str:
    named = ", ".join(f"{n['question']} {n['share']:.3f}" for n in scores["named"])
    kept = ", ".join(
        f"{key} {scores[key]:.4f}" for key in ("selectivity", "others", "neighbours", "yes_no")
    )
    return f"{named}; {kept}"


def machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    options = tyro.cli(Options)
    console = Console(stderr=True)
    concepts = [run_concept(concept, options, console) for concept in options.concepts]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"machine": machine(), "concepts": concepts}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
