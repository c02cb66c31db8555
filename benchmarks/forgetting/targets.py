"""The shipped model's answers after each setting: docs/results/forgetting.md.

For every concept, target, choice of Mergers and seed: fit the adapter, save it, ask the Hugging
Face model about the held-out images, and fit probes for each projector. Rows are labelled from the
saved adapter, not from the settings.
"""

import itertools
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from benchmarks.shipped.qwen3_vl.images import regions
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.probes import fit_before, read_splits
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.features.streaming import Granularity
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.objective.problem import adapted_in, drawn_targets
from jax_unlearn.objective.targets import TARGETS
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.config import flat
from jax_unlearn.runs.settings.presets import FAITHFUL
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runtime.assets import ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "forgetting.json"
# Numbers of the questions asked about all images: the four open ones, and whether there is a
# triangle. The other yes/no questions are asked about forget images only.
ALL_IMAGES = (0, 1, 2, 3, 6)


@dataclass
class Options:
    """The concepts and seeds to run; the defaults are those of the tables."""

    concepts: tuple[str, ...] = ("astronaut", "triangle", "red triangle")
    """Concepts for every target, on the main Merger and on all Mergers."""
    others: tuple[str, ...] = ("cat", "rocket", "circle", "gray", "teal", "blue circle")
    """Concepts for the default setting only; some were used in choosing it."""
    unseen: tuple[str, ...] = (
        "coffee",
        "galaxy",
        "retina",
        "rectangle",
        "yellow",
        "green rectangle",
    )
    """Concepts for the default setting only, on which nothing was measured before it was chosen."""
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = RESULTS


def grid() -> list[dict[str, Any]]:
    """The settings: the published scheme, every target on one or all Mergers, other optimisers."""
    settings = [{"targets": (w,), "target": t} for w in ("merger", "all") for t in TARGETS]
    return [FAITHFUL, *settings, {"optimizer": "adam"}, {"optimizer": "leace"}]


class Bench:
    """One concept: its features, the probes fitted before the edit, and the model's answers."""

    def __init__(self, concept: str, questions: Path, console: Console, **setting: Any) -> None:
        """Extract features, fit the probes, and ask the model without an adapter.

        Args:
            concept: the concept to forget.
            questions: JSON file of the questions.
            console: where progress is shown.
            setting: settings that determine which taps are extracted, mainly `linears`.
        """
        demo = demo_config(Demo(concept=concept))
        self.config = demo.replace(questions=questions, **setting)
        self.extracted = {
            rows: QwenImages(self.config.replace(granularity=rows), console).extract()
            for rows in get_args(Granularity)
        }
        means = self.extracted["images"]
        self.test = means.test
        self.fitted = fit_before(splits(means, means.train.image_means(), NO_CHANGE))
        read = self.read(NO_CHANGE)
        self.exam = Exam(self.test.files, self.test.is_forget, read["neighbours"], questions)
        self.before = self.exam.score_model(load_vlm(self.config.samples.checkpoint))

    def run(self, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        """Fit with these settings and measure; the row describes the saved adapter."""
        begun = time.perf_counter()
        config = self.config.replace(seed=seed, **setting)
        extracted = self.extracted[config.extraction.granularity]
        result = fit_adapter(extracted, config, Console(quiet=True)).found.result
        seconds = time.perf_counter() - begun
        checkpoint = config.samples.checkpoint
        with TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            porting.save_peft(result.adapter, adapter, base_model_name_or_path=str(checkpoint))
            saved = porting.load_peft(adapter)
            after = self.exam.score_model(load_vlm(checkpoint, adapter))
        asked = adapted_in(config.objective, extracted)
        if set(saved.pairs) != set(asked):
            raise SystemExit(f"{setting}: adapted {sorted(saved.pairs)}, not {asked}")
        values = flat(config)
        shown = {key: values[key] for key in FAITHFUL} | {"optimizer": optimizer_of(config)}
        facts = {"setting": shown, "seed": seed, "seconds": seconds}
        facts |= {"linears": sorted(saved.pairs), "rank": saved.rank}
        return facts | {"after": after, **self.read(saved)}

    def read(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Scores of the probes on image means."""
        means = self.extracted["images"]
        train = splits(means, means.train.image_means(), adapter)
        return read_splits(train, splits(means, means.test, adapter), self.fitted)

    def drawn(self, setting: dict[str, Any]) -> bool:
        """Whether the result depends on the seed: the target is drawn, or Adam is used."""
        config = self.config.replace(**setting)
        target = config.objective.target
        return optimizer_of(config) == "adam" or target in drawn_targets("qwen_images")

    def images(self) -> dict[str, int | None]:
        """The number of held-out forget images, and of the photo regions they show."""
        counts = Counter(str(label) for label in self.test.forget.labels)
        found = [regions(label, "test", count) for label, count in counts.items()]
        known = [n for n in found if n is not None]
        parts = sum(known) if len(known) == len(found) else None
        return {"forget": counts.total(), "forget_regions": parts}


def measure(
    concept: str, settings: list[dict[str, Any]], seeds: Sequence[int], console: Console
) -> dict[str, Any]:
    """Every setting on one concept; seeds besides the first only if the result depends on them."""
    bench = make_bench(concept, console)
    rows = []
    for setting, seed in itertools.product(settings, seeds):
        if seed != seeds[0] and not bench.drawn(setting):
            continue
        row = bench.run(setting, seed)
        rows.append(row)
        console.print(f"{concept} {setting} {seed}, {row['seconds']:.1f} s: {brief(row['after'])}")
    return {"concept": concept, "images": bench.images(), "before": bench.before, "rows": rows}


def make_bench(concept: str, console: Console, **setting: Any) -> Bench:
    """A `Bench` that asks the questions of the tables."""
    entries = json.loads((ASSETS / "questions.json").read_text())
    words = set(concept.split())
    for number, entry in enumerate(entries):
        if number not in ALL_IMAGES:
            forget = {k: v for k, v in entry["answers"].items() if words <= set(k.split())}
            entry["answers"] = forget
    with TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.json"
        questions.write_text(json.dumps(entries))
        return Bench(concept, questions, console, **setting)


def brief(scores: dict[str, Any]) -> str:
    """One line of a model's scores."""
    named = ", ".join(f"{n['question']} {n['share']:.3f} {n['instead']}" for n in scores["named"])
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
    results: dict[str, Any] = {"machine": machine(), "concepts": [], "others": [], "unseen": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = [("concepts", concept, grid()) for concept in options.concepts]
    work += [("others", concept, [{}]) for concept in options.others]
    work += [("unseen", concept, [{}]) for concept in options.unseen]
    for part, concept, settings in work:
        results[part].append(measure(concept, settings, options.seeds, console))
        # Written after each concept, so that an error does not lose an hour's work.
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
# The parts of the results, and whether their concepts were used in choosing the default.
PARTS = {"concepts": "yes", "others": "some", "unseen": "none"}
KEPT = ("selectivity", "neighbours", "others")


def table(results: dict[str, Any]) -> str:
    """The model's answers after each setting, one section per concept."""
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
    """Shares of the naming questions, the other answers to the worst of them, and the SCORES."""
    named = [
        over_seeds(one[part][i]["share"] for one in scores)
        for part in ("named", "confirmed")
        for i in range(len(scores[0][part]))
    ]
    worst = cells.worst(scores[0], scores)
    return [*named, cells.instead(scores, worst), *cells.score_cells(scores)]


def default_table(results: dict[str, Any]) -> str:
    """The default setting on every concept, by the worst naming question."""
    rows = []
    for part, concept, group in default_rows(results):
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
        facts = [concept["concept"], PARTS[part], cells.count(concept["images"])]
        change = over_seeds(cells.drift(row) for row in group)
        rows.append([*facts, *shares, *kept, false, found, change])
    header = ["concept", "part in choosing the default", "images to forget", "named before"]
    header += ["named after", "chance", "answered instead", *cells.SCORES.values(), "false yes"]
    header += ["found by a refitted reader", "drift, %"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def default_rows(
    results: dict[str, Any],
) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """(part of the results, concept, its rows of the default setting) for every concept."""
    found = []
    for part in PARTS:
        for concept in results[part]:
            groups = cells.by_label(concept["concept"], concept["rows"]).values()
            default = next(group for group in groups if cells.is_default(group[0]))
            found.append((part, concept, default))
    return found


def expected(results: dict[str, Any]) -> str:
    """The default on the concepts not used in choosing it, and the worst over all concepts."""
    rows, numbers = [], []
    for part, concept, group in default_rows(results):
        after = [row["after"] for row in group]
        worst = cells.worst(concept["before"], after)
        before = cells.naming_of(concept["before"], worst)["share"]
        named = max(cells.naming_of(one, worst)["share"] for one in after)
        kept = [min_of(one[key] for one in after) for key in KEPT]
        false = max_of(cells.false_yes(one) for one in after)
        found = max(cells.found_by(row, REFITTED) for row in group)
        numbers.append((named, false, *kept, found))
        if part == "unseen":
            shares = f"{over_seeds([before])} → {over_seeds([named])}"
            facts = [concept["concept"], cells.count(concept["images"]), shares]
            more = [over_seeds([share]) for share in (false, *kept, found)]
            rows.append([*facts, cells.instead(after, worst), *more])
    most, false, *least, found = zip(*numbers, strict=True)
    worst_case = (max_of(false), *map(min_of, least), max_of(found))
    cases = [over_seeds([share]) for share in worst_case]
    rows.append([f"**worst of {len(numbers)}**", "", over_seeds([max(most)]), "", *cases])
    header = ["concept", "images to forget", "named, before → after", "answered instead"]
    header += ["false yes", *(cells.SCORES[key] for key in KEPT), "found by a refitted reader"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"


def min_of(shares: Iterable[float | None]) -> float | None:
    return min((share for share in shares if share is not None), default=None)


def max_of(shares: Iterable[float | None]) -> float | None:
    return max((share for share in shares if share is not None), default=None)


def readers(results: dict[str, Any]) -> str:
    """Scores of readers at each projector that a setting changes, one section per concept."""
    sections = [caption(results["machine"], COMMAND)]
    header = [f"{reader.replace('_', ' ')}: {images}" for reader, images in READ]
    for concept in results["concepts"]:
        groups = cells.by_label(concept["concept"], concept["rows"])
        some = concept["rows"][:1]
        rows = [["before", name, *read_cells(some, name, "before")] for name in some[0]["paths"]]
        for name, group in groups.items():
            changed = cells.mergers(group[0])
            projectors = [one for one in group[0]["paths"] if one in changed]
            rows += [[name, one, *read_cells(group, one, "after")] for one in projectors]
        found = table_of(["target, LoRA on", "projector", *header], rows)
        title = f"<summary>{concept['concept']}</summary>"
        sections.append(f"<details markdown>{title}\n\n{found}\n\n</details>")
    return "\n\n".join(sections)


def read_cells(group: list[dict[str, Any]], projector: str, when: str) -> list[str]:
    return [
        over_seeds(row["paths"][projector]["readers"][reader][when][images] for row in group)
        for reader, images in READ
    ]


if __name__ == "__main__":
    main()
