"""Whether labelled images find a forgotten concept again, for each target.

The shipped drawings are too few to fit a covariance on, and to fit and test readers; this benchmark
draws more (`shipped.qwen3_vl.generated`), other ones for each seed. Photographs stay as they are.
The model's answers are asked about the shipped held-out images.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro
from rich.console import Console

import porting
from benchmarks.forgetting.stand_in_tables import plot
from benchmarks.forgetting.targets import machine
from benchmarks.shipped.qwen3_vl.generated import counts_for, write_drawings
from benchmarks.shipped.qwen3_vl.images import COLORS, PHOTOS, SHAPES
from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.probes import drift_by_class, fit_before, neighbour_classes, read_splits
from jax_unlearn.evaluate.two_classes import reidentify
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.presets import OF_TARGET
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runtime.assets import ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "stand_in.json"
QUIET = Console(quiet=True)
STAND_IN = OF_TARGET["stand_in"]
SETTINGS: dict[str, dict[str, Any]] = {
    "near": {},
    "mean": {"target": "mean"},
    "LEACE": {"optimizer": "leace"},
    "stand_in, gentle": STAND_IN | {"strength": "gentle"},
    "stand_in": STAND_IN,
    "stand_in, strong": STAND_IN | {"strength": "strong"},
}
# Images of the model's exam: the first of each class.
ASKED = 5


@dataclass
class Options:
    """The concepts and numbers of images; the defaults are those of the tables."""

    concepts: tuple[str, ...] = ("triangle", "rectangle", "red triangle", "astronaut", "teal")
    """Concepts that had a part in the design: rectangle showed that images must be matched within
    classes of the same words."""
    unseen: tuple[str, ...] = ("blue", "brown", "green circle")
    """Concepts that had no part in any choice."""
    seeds: tuple[int, ...] = (0, 1, 2)
    train: int = 600
    """Drawings of the concept, and of its counterpart, that the edit is fitted on."""
    held_out: int = 600
    """Held-out drawings of each, half of which readers are fitted on."""
    growth: tuple[int, ...] = (40, 100, 250, 1000)
    """Numbers of images of the first concept, for the law."""
    references: tuple[str, ...] = ()
    """CONCEPT=CHECKPOINT of models trained without a concept
    (`python -m benchmarks.shipped.qwen3_vl --without CONCEPT --out CHECKPOINT`)."""
    out: Path = RESULTS


@cache
def near_to(concept: str) -> tuple[str, list[str]]:
    """(counterpart that a run on the shipped images chooses, its nearest classes to keep)."""
    demo = demo_config(Demo(concept=concept)).replace(**STAND_IN)
    extracted = QwenImages(demo, QUIET).extract()
    train = splits(extracted, extracted.train.image_means(), NO_CHANGE)
    return extracted.counterparts[0].name, neighbour_classes(train)


def draw(folder: Path, concept: str, other: str, options: Options, seed: int, train: int) -> None:
    """Write drawings of a concept, as many of its counterpart, and some of the other classes."""
    few = {"train": 20, "test": 20}
    counts = {}
    for split, most in (("train", train), ("test", options.held_out)):
        own, theirs = (counts_for(one, most, few[split]) for one in (concept, other))
        shown = set(concept.split())
        counts[split] = {n: own[n] if shown <= set(n.split()) else theirs[n] for n in own}
    write_drawings(folder, counts, seed)


def config_for(folder: Path, concept: str, other: str) -> RunConfig:
    return demo_config(Demo(concept=concept)).replace(
        forget=folder / "train",
        preserve=folder / "train",
        forget_held_out=folder / "test",
        preserve_held_out=folder / "test",
        questions=None,
        stand_in=other,
        **STAND_IN,
    )


def is_drawn(concept: str) -> bool:
    return set(concept.split()) <= {*SHAPES, *COLORS}


def with_photos(folder: Path) -> None:
    """Add the shipped photographs, so that there are other things to keep."""
    for split in ("train", "test"):
        for photo in PHOTOS:
            (folder / split / photo.name).symlink_to(ASSETS / "images" / split / photo.name)


def extracted_for(
    concept: str, options: Options, seed: int, train: int, checkpoint: Path | None = None
) -> tuple[Extracted, RunConfig]:
    """The features of generated drawings, or for a photograph of the shipped images."""
    if not is_drawn(concept):
        config = demo_config(Demo(concept=concept)).replace(questions=None, seed=seed, **STAND_IN)
        return QwenImages(config, QUIET).extract(), config
    other, _ = near_to(concept)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder, concept, other, options, seed, train)
        with_photos(folder)
        config = config_for(folder, concept, other)
        if checkpoint:
            config = config.replace(checkpoint=checkpoint)
        return QwenImages(config, QUIET).extract(), config


class Asker:
    """The model's exam on a few of the shipped held-out images of each class."""

    def __init__(self, concept: str) -> None:
        self.checkpoint = ASSETS / "checkpoint"
        words = set(concept.split())
        files = [
            ImageFile(path, folder.name)
            for folder in sorted((ASSETS / "images" / "test").iterdir())
            for path in sorted(folder.iterdir())[:ASKED]
        ]
        is_forget = np.array([words <= set(file.label.split()) for file in files])
        # The questions that name: what it is, its shape and its colour.
        entries = json.loads((ASSETS / "questions.json").read_text())[:3]
        with TemporaryDirectory() as folder:
            questions = Path(folder) / "questions.json"
            questions.write_text(json.dumps(entries))
            self.exam = Exam(files, is_forget, near_to(concept)[1], questions)
        self.before = self.exam.score_model(load_vlm(self.checkpoint))

    def after(self, adapter: LoraAdapter) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "adapter"
            porting.save_peft(adapter, saved, base_model_name_or_path=str(self.checkpoint))
            return self.exam.score_model(load_vlm(self.checkpoint, saved))


def measure(concept: str, options: Options, console: Console) -> dict[str, Any]:
    """Every setting and seed on one concept; the model is asked once for each setting."""
    asker = Asker(concept)
    rows = []
    for seed in options.seeds:
        extracted, config = extracted_for(concept, options, seed, options.train)
        train = splits(extracted, extracted.train.image_means(), NO_CHANGE)
        fitted = fit_before(train)
        for name, setting in SETTINGS.items():
            begun = time.perf_counter()
            start = config.replace(target="near", rank=5, lambda_forget=1.3, lambda_preserve=2.5)
            chosen = start.replace(seed=seed, **setting)
            adapter = fit_adapter(extracted, chosen, QUIET).found.result.adapter
            seconds = time.perf_counter() - begun
            test = splits(extracted, extracted.test, adapter)
            read = read_splits(train, test, fitted)
            (found,) = reidentify(extracted, adapter)
            row = {
                "setting": name,
                "seed": seed,
                "linears": sorted(adapter.pairs),
                "rank": adapter.rank,
                "seconds": seconds,
                "drift": max(one["drift"]["relative"] for one in read["paths"].values()),
                "kept": read["preserve"]["accuracy_after"] - read["preserve"]["accuracy_before"],
                "most_moved": max(drift_by_class(test).values()),
                "readers": found,
            }
            if seed == options.seeds[0]:
                row["answers"] = asker.after(adapter)
            rows.append(row)
            console.print(f"{concept} {name} {seed}: {brief(row)}")
    means = next(iter(extracted.stand_ins[0].means.values()))
    sizes = {"forget": len(extracted.train.forget.files), "stand_in": len(means)}
    return {"concept": concept, "images": sizes, "before": asker.before, "rows": rows}


def brief(row: dict[str, Any]) -> str:
    curve = {k: round(v["after"][0], 3) for k, v in row["readers"]["few_shot"]["mean"].items()}
    linear = row["readers"]["refitted"]["mean"]["linear"]["after"]["balanced"]
    return f"{row['seconds']:.1f} s, drift {row['drift']:.3f}, {curve}, linear {linear:.3f}"


def grown(options: Options, console: Console) -> list[dict[str, Any]]:
    """The first concept with different numbers of images, beside the law."""
    rows = []
    for train in options.growth:
        extracted, config = extracted_for(options.concepts[0], options, 0, train)
        adapter = fit_adapter(extracted, config, QUIET).found.result.adapter
        (found,) = reidentify(extracted, adapter)
        rows.append({"train": len(extracted.train.forget.files), "readers": found})
        linear = found["refitted"]["mean"]["linear"]["after"]["balanced"]
        console.print(f"{train} images: linear {linear:.3f}, law {found['expected_linear']:.3f}")
    return rows


def reference(concept: str, name: str, checkpoint: Path, options: Options) -> dict[str, Any]:
    """What readers find in the embeddings of another tower, without any edit."""
    extracted, _ = extracted_for(concept, options, 0, options.train, checkpoint)
    (found,) = reidentify(extracted, NO_CHANGE)
    return {"concept": concept, "name": name, "readers": found}


def untrained(folder: Path) -> Path:
    """A checkpoint of the shipped model's shape with weights drawn at random."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    shipped, out = ASSETS / "checkpoint", folder / "untrained"
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(shipped))
    model.save_pretrained(out)
    for file in shipped.glob("*processor_config.json"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def references(options: Options, console: Console) -> Iterator[dict[str, Any]]:
    """The untrained tower for some concepts, and models that never saw one."""
    with TemporaryDirectory() as folder:
        checkpoint = untrained(Path(folder))
        for concept in (options.concepts[0], *options.unseen):
            if is_drawn(concept):
                yield reference(concept, "untrained tower", checkpoint, options)
    for given in options.references:
        concept, _, path = given.partition("=")
        yield reference(concept, "never saw it", Path(path), options)


def main() -> None:
    options = tyro.cli(Options)
    console = Console(stderr=True)
    results: dict[str, Any] = {
        "machine": machine(),
        "concepts": [],
        "unseen": [],
        "references": [],
    }

    def save() -> None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    for concept in options.unseen:
        results["unseen"].append(measure(concept, options, console))
        save()
    results["references"] = [*references(options, console)]
    results["growth"] = grown(options, console)
    save()
    for concept in options.concepts:
        results["concepts"].append(measure(concept, options, console))
        save()
    plot(results, options.out.with_suffix(".png"), [*SETTINGS])


if __name__ == "__main__":
    main()
