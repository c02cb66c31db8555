"""Whether a stand-in made of several classes hides a concept better than one class.

Triangles are moved onto circles, onto rectangles, or onto drawings of which half are circles and
half rectangles, all in their own colours. Readers tell triangles from circles, from rectangles,
and from both; their images had no part in the edit.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from rich.console import Console

from benchmarks.forgetting.stand_in import QUIET, STAND_IN, with_photos
from benchmarks.forgetting.stand_in_tables import found_cells
from benchmarks.forgetting.targets import machine
from benchmarks.markdown import caption, over_seeds, table_of
from benchmarks.shipped.qwen3_vl.generated import drawings
from benchmarks.shipped.qwen3_vl.images import COLORS
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.probes import fit_before, read_splits
from jax_unlearn.evaluate.two_classes import reidentify
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.qwen_images import QwenImages

RESULTS = Path(__file__).parents[1] / "results" / "stand_in_several.json"
CONCEPT, ONE, OTHER = "triangle", "circle", "rectangle"
# The word of the classes that have both shapes.
BOTH = "figure"
TARGETS = (ONE, OTHER, BOTH)


@dataclass
class Options:
    """Numbers of images and the seeds."""

    train: int = 600
    """Drawings of each shape, and of both together, that the edit is fitted on."""
    held_out: int = 600
    """Held-out drawings of each, half of which readers are fitted on."""
    seeds: tuple[int, ...] = (0, 1)
    out: Path = RESULTS


def draw(folder: Path, options: Options, seed: int) -> None:
    """Write FOLDER/SPLIT/COLOUR WORD/NNN.png, where the word is a shape or that of both."""
    for split, count in (("train", options.train), ("test", options.held_out)):
        for color in COLORS:
            own = -(-count // len(COLORS))
            for word in (CONCEPT, ONE, OTHER, BOTH):
                place = folder / split / f"{color} {word}"
                place.mkdir(parents=True)
                # Those of both are other drawings than those of one.
                shapes, more = ((ONE, OTHER), 100) if word == BOTH else ((word,), 0)
                for shape in shapes:
                    made = drawings(f"{color} {shape}", split, seed + more)
                    for i, image in zip(range(own // len(shapes)), made, strict=False):
                        image.save(place / f"{shape}-{i:04d}.png")
    with_photos(folder)


def config_for(folder: Path, target: str) -> RunConfig:
    return demo_config(Demo(concept=CONCEPT)).replace(
        forget=folder / "train", preserve=folder / "train", forget_held_out=folder / "test",
        preserve_held_out=folder / "test", questions=None, stand_in=target, **STAND_IN,
    )  # fmt: skip


def against(extracted: Extracted, adapter: LoraAdapter, word: str) -> dict[str, Any]:
    """What readers find that tell the concept from the classes with a word."""
    (pair,) = extracted.counterparts
    classes = tuple(sorted(f"{color} {word}" for color in COLORS))
    other = Counterpart(pair.concept, pair.forget, word, classes)
    (found,) = reidentify(replace(extracted, counterparts=(other,), stand_ins=()), adapter)
    return found


def measure(options: Options, seed: int, console: Console) -> list[dict[str, Any]]:
    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder, options, seed)
        for target in TARGETS:
            config = config_for(folder, target)
            extracted = QwenImages(config, QUIET).extract()
            adapter = fit_adapter(extracted, config, QUIET).found.result.adapter
            train = splits(extracted, extracted.train.image_means(), NO_CHANGE)
            test = splits(extracted, extracted.test, adapter)
            read = read_splits(train, test, fit_before(train))
            rows.append(
                {
                    "onto": target,
                    "seed": seed,
                    "rank": adapter.rank,
                    "linears": sorted(adapter.pairs),
                    "images": len(extracted.train.forget.files),
                    "drift": max(one["drift"]["relative"] for one in read["paths"].values()),
                    "readers": {word: against(extracted, adapter, word) for word in TARGETS},
                }
            )
            console.print(f"onto {target}, seed {seed}: drift {rows[-1]['drift']:.3f}")
    return rows


def table(results: dict[str, Any]) -> str:
    """Which classes triangles are moved onto × which they are told from."""
    header = ["moved onto", "told from", "10 labelled", "30 labelled", "100 labelled"]
    header += ["linear", "1-NN", "RBF", "drift, %"]
    words = {BOTH: f"half {ONE}s, half {OTHER}s", ONE: f"{ONE}s", OTHER: f"{OTHER}s"}
    rows = []
    for target in TARGETS:
        own = [row for row in results["rows"] if row["onto"] == target]
        for word in TARGETS:
            found = found_cells([row["readers"][word] for row in own], "after")[2:]
            drift = over_seeds(row["drift"] for row in own) if word == TARGETS[0] else ""
            rows.append([words[target], words[word], *found, drift])
    return (
        f"{caption(results['machine'], 'forgetting.stand_in_several')}\n\n{table_of(header, rows)}"
    )


def main() -> None:
    options, console = tyro.cli(Options), Console(stderr=True)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows += measure(options, seed, console)
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
