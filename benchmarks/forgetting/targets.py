"""What the shipped model still says after each setting: the table of the README.

For every concept, kind of target, choice of Mergers and seed: train, save the adapter, and ask the
Hugging Face model about the held-out images; read each path with the readers. One JSON file, from
which `benchmarks.write_docs` writes the README's tables.
"""

import itertools
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import jax
import torch
import tyro
from rich.console import Console

import porting
from benchmarks.forgetting import cells
from benchmarks.markdown import caption, over_seeds, table_of
from jax_unlearn.evaluate.probes import fit_before, read_splits
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.features.streaming import Granularity
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.targets import TARGETS
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.fit_adapter import adapt
from jax_unlearn.runs.settings.presets import FAITHFUL
from jax_unlearn.runs.sources.qwen_images import ImageSession
from jax_unlearn.runtime.assets import ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "forgetting.json"
# The four open questions, and whether there is a triangle.
QUESTIONS = (0, 1, 2, 3, 6)


@dataclass
class Options:
    """Which settings to run; the defaults are the README's tables."""

    concepts: tuple[str, ...] = ("astronaut", "triangle", "red triangle")
    """Every target, on the main Merger and on all."""
    others: tuple[str, ...] = ("cat", "rocket", "circle", "gray", "teal", "blue circle")
    """The default setting only; it was chosen without the first half of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = RESULTS


def grid() -> list[dict[str, Any]]:
    """The published scheme, every target on the main Merger and on all, and other optimisers."""
    settings = [{"targets": (w,), "target": t} for w in ("merger", "all") for t in TARGETS]
    return [FAITHFUL, *settings, {"optimizer": "adam"}, {"optimizer": "leace"}]


class Bench:
    """One concept: features extracted once, readers fitted once, the model asked once before."""

    def __init__(self, concept: str, questions: Path, console: Console, **setting: Any) -> None:
        """setting: what decides which taps are extracted, `linears` above all."""
        demo = demo_config(Demo(concept=concept))
        self.config = replace(demo, questions=questions, **setting)
        self.session = ImageSession(self.config, console)
        self.sides = {rows: self.session.train_features(rows) for rows in get_args(Granularity)}
        self.test = self.session.test_features()
        nothing = LoraAdapter({}, alpha=1.0, rank=1)
        self.fitted = fit_before(self.session.splits(self.sides["images"], nothing))
        read = self.read(nothing)
        test = self.test
        self.exam = Exam(test.files, test.is_forget, read["neighbours"], questions)
        self.default = {"optimizer": self.session.optimizer, "target": self.config.target}
        self.before = self.exam.sit(load_vlm(self.config.checkpoint))

    def run(self, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        begun = time.perf_counter()
        config = self.session.config = replace(self.config, seed=seed, **setting)
        sides = self.sides[config.granularity]
        result = adapt(self.session, sides, Console(quiet=True)).found.result
        seconds = time.perf_counter() - begun
        with TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            base = str(config.checkpoint)
            porting.save_peft(result.adapter, adapter, base_model_name_or_path=base)
            after = self.exam.sit(load_vlm(config.checkpoint, adapter))
        read = self.read(result.adapter)
        shown = {key: getattr(config, key) for key in FAITHFUL}
        shown["optimizer"] = self.session.optimizer
        return {"setting": shown, "seed": seed, "seconds": seconds, "after": after, **read}

    def read(self, adapter: LoraAdapter) -> dict[str, Any]:
        splits = (self.session.splits(side, adapter) for side in (self.sides["images"], self.test))
        return read_splits(*splits, self.fitted)


def measure(
    concept: str, settings: list[dict[str, Any]], options: Options, console: Console
) -> dict[str, Any]:
    bench = make_bench(concept, console)
    rows = []
    for setting, seed in itertools.product(settings, options.seeds):
        if seed != options.seeds[0] and not drawn({**bench.default, **setting}):
            continue
        row = bench.run(setting, seed)
        rows.append(row)
        console.print(f"{concept} {setting} {seed}, {row['seconds']:.1f} s: {brief(row['after'])}")
    return {"concept": concept, "before": bench.before, "rows": rows}


def drawn(setting: dict[str, Any]) -> bool:
    """Whether a setting depends on the seed: a target that is drawn, or Adam's start."""
    return setting["optimizer"] == "adam" or setting["target"] in ("random", "matched")


def make_bench(concept: str, console: Console, **setting: Any) -> Bench:
    """A `Bench` that asks the questions of the tables."""
    with TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.json"
        entries = json.loads((ASSETS / "questions.json").read_text())
        questions.write_text(json.dumps([entries[i] for i in QUESTIONS]))
        return Bench(concept, questions, console, **setting)


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
    results: dict[str, Any] = {"machine": machine(), "concepts": [], "others": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = [("concepts", concept, grid()) for concept in options.concepts]
    work += [("others", concept, [{}]) for concept in options.others]
    for part, concept, settings in work:
        results[part].append(measure(concept, settings, options, console))
        # After each concept: an hour's work is not lost to the last one.
        options.out.write_text(json.dumps(results, indent=1) + "\n")


# Columns of the tables of readers: (reader, images).
READ = (
    *((reader, images) for reader in ("nearest_mean", "linear_probe") for images in
      ("forget", "preserve", "neighbours")),
    ("refitted_probe", "forget"),
    ("refitted_neighbour", "forget"),
)  # fmt: skip
REFITTED = ("refitted_probe", "refitted_neighbour")
COMMAND = "forgetting.targets"


def table(results: dict[str, Any]) -> str:
    """What the model answers after each setting, a concept a section."""
    sections = [caption(results["machine"], COMMAND)]
    for concept in results["concepts"]:
        asked = concept["before"]["named"] + concept["before"]["confirmed"]
        rows = [["before", *answer_cells([concept["before"]]), "", ""]]
        for name, group in cells.by_label(concept["concept"], concept["rows"]).items():
            answers = answer_cells([row["after"] for row in group])
            rows.append([name, *answers, *cells.change_cells(group)])
        questions = [f"“{n['question']}” (chance {100 * n['chance']:.1f})" for n in asked]
        header = ["target, LoRA on", *questions, "answered instead", *cells.HEADER]
        title = f"### {concept['concept']}\n\nImages to forget: {cells.count(concept['images'])}."
        sections += [title, table_of(header, rows)]
    return "\n\n".join(sections)


def answer_cells(scores: list[dict[str, Any]]) -> list[str]:
    """Shares of the naming questions, the answers to the worst of them, and what is kept."""
    named = [
        over_seeds(one[part][i]["share"] for one in scores)
        for part in ("named", "confirmed")
        for i in range(len(scores[0][part]))
    ]
    worst = cells.worst(scores[0], scores)
    return [*named, cells.instead(scores, worst), *cells.score_cells(scores)]


def default_table(results: dict[str, Any]) -> str:
    """The default setting on every concept, by the naming question that does worst."""
    rows = []
    for concept, group in default_rows(results):
        before, after = concept["before"], [row["after"] for row in group]
        worst = cells.worst(before, after)
        was, chance = (cells.naming_of(before, worst)[key] for key in ("share", "chance"))
        now = over_seeds(cells.naming_of(one, worst)["share"] for one in after)
        kept = [
            f"{over_seeds([before[key]])} → {over_seeds(one[key] for one in after)}"
            for key in cells.SCORES
        ]
        false = cells.score_cells(after)[-1]
        found = over_seeds(cells.found_by(row, REFITTED) for row in group)
        shares = [over_seeds([was]), now, f"{100 * chance:.1f}", cells.instead(after, worst)]
        name, images = concept["concept"], cells.count(concept["images"])
        change = over_seeds(cells.drift(row) for row in group)
        rows.append([name, images, *shares, *kept, false, found, change])
    header = ["concept", "images to forget", "named before", "named after", "chance"]
    header += ["answered instead", *cells.SCORES.values(), "false yes"]
    header += ["found by a refitted reader", "drift, %"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def default_rows(
    results: dict[str, Any],
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every concept with its rows of the default setting."""
    found = []
    for concept in results["concepts"] + results["others"]:
        groups = cells.by_label(concept["concept"], concept["rows"]).values()
        found.append((concept, next(group for group in groups if cells.is_default(group[0]))))
    return found


def expected(results: dict[str, Any]) -> str:
    """`default_table` in a few columns, and the worst case of each: the README's."""
    rows, numbers = [], []
    for concept, group in default_rows(results):
        after = [row["after"] for row in group]
        worst = cells.worst(concept["before"], after)
        before = cells.naming_of(concept["before"], worst)["share"]
        shares = [
            max(cells.naming_of(one, worst)["share"] for one in after),
            *(min(one[key] for one in after) for key in ("selectivity", "neighbours", "others")),
            max(cells.found_by(row, REFITTED) for row in group),
        ]
        numbers.append(shares)
        named = f"{over_seeds([before])} → {over_seeds(shares[:1])}"
        answers = cells.instead(after, worst)
        kept = [over_seeds([share]) for share in shares[1:]]
        rows.append([concept["concept"], cells.count(concept["images"]), named, answers, *kept])
    named, *kept, found = zip(*numbers, strict=True)
    worst_case = [max(named), *map(min, kept), max(found)]
    first, *others = (over_seeds([share]) for share in worst_case)
    rows.append(["**worst case**", "", first, "", *others])
    header = ["concept", "images to forget", "named, % before → after", "answered instead"]
    header += ["selectivity", "near neighbours", "others", "found by a refitted reader"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def readers(results: dict[str, Any]) -> str:
    """What readers find on each path that a setting changes, a concept a section."""
    sections = [caption(results["machine"], COMMAND)]
    header = [f"{reader.replace('_', ' ')}: {images}" for reader, images in READ]
    for concept in results["concepts"]:
        groups = cells.by_label(concept["concept"], concept["rows"])
        some = concept["rows"][:1]
        rows = [["before", path, *read_cells(some, path, "before")] for path in some[0]["paths"]]
        for name, group in groups.items():
            changed = cells.mergers(group[0])
            paths = [path for path in group[0]["paths"] if path in changed]
            rows += [[name, path, *read_cells(group, path, "after")] for path in paths]
        found = table_of(["target, LoRA on", "path", *header], rows)
        title = f"<summary>{concept['concept']}</summary>"
        sections.append(f"<details markdown>{title}\n\n{found}\n\n</details>")
    return "\n\n".join(sections)


def read_cells(group: list[dict[str, Any]], path: str, when: str) -> list[str]:
    return [
        over_seeds(row["paths"][path]["readers"][reader][when][images] for row in group)
        for reader, images in READ
    ]


if __name__ == "__main__":
    main()
