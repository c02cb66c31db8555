"""Many requests in a ledger: the ways to combine them, against adapters that are stacked.

Requests are classes of the shipped images. For each number of them and each way to combine them:
what the Hugging Face model still names in its answers, what linear probes fitted before the edit
name, and what is kept, on held-out images. Then three random orders of sixteen requests, once
through the commands of a ledger and once with each fitted on the model that is already edited; and
each of the sixteen withdrawn.
"""

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import tyro
from rich.console import Console

import porting
from benchmarks.forgetting.targets import machine
from benchmarks.harness import write
from jax_unlearn.data.class_names import matches
from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.probes import drift
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.evaluate.vlm.scoring import Asked, score
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.requests import Combine
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.ledger.alone import owners
from jax_unlearn.runs.ledger.combine import JointFit, SumOfFits
from jax_unlearn.runs.ledger.commands import add, init, solve
from jax_unlearn.runs.ledger.named import Probes
from jax_unlearn.runs.ledger.options import Add, Init, Solve
from jax_unlearn.runs.ledger.requests import Divided, Request, divide, open_ledger
from jax_unlearn.runs.ledger.source import extracted_of, only
from jax_unlearn.runs.ledger.sums import added, changes_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.presets import OF_TARGET
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.digests import of_bytes

RESULTS = Path(__file__).parents[1] / "results" / "ledger.json"
QUIET = Console(quiet=True)
CHECKPOINT, IMAGES = ASSETS / "checkpoint", ASSETS / "images"
# The questions that name, and whether it is a photo or a drawing.
QUESTIONS = 4
# Held-out images of each class that the model is asked about: the first ones.
ASKED = 10
Shares = dict[str, float]


@dataclass
class Options:
    """The requests; the defaults are those of the tables."""

    concepts: tuple[str, ...] = (
        "astronaut", "coffee", "red triangle", "blue circle", "cat", "coins", "rocket", "galaxy",
        "retina", "grass", "green rectangle", "teal triangle", "black circle", "yellow rectangle",
        "brown triangle", "gray circle",
    )  # fmt: skip
    """Concepts of one class each."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """How many of them, the first ones, are asked for."""
    overlapping: tuple[str, ...] = ("triangle", "teal", "astronaut", "coffee")
    """Concepts of which some are of many classes and share images."""
    unseen: tuple[str, ...] = (
        "brick", "gravel", "handwriting", "tissue", "red circle", "blue rectangle",
        "yellow triangle", "gray rectangle",
    )  # fmt: skip
    """Other concepts of one class, on which nothing was measured before the default was chosen."""
    stand_in: int = 4
    """How many of the first concepts are also moved onto stand-ins."""
    orders: int = 3
    """Random orders."""
    stacked: tuple[int, ...] = (4, 16)
    """How many requests are stacked in each order."""
    out: Path = RESULTS


@dataclass(frozen=True)
class Edit:
    """An adapter for some requests: what it was fitted on, and how.

    facts: the strengths of the requests by concept, and the CPU seconds of the fit.
    """

    divided: Divided
    extracted: Extracted
    probes: Probes
    adapter: LoraAdapter
    facts: dict[str, Any] = field(default_factory=dict)


class Bench:
    """A ledger of the shipped images, and the model's answers before any edit."""

    def __init__(self, directory: Path) -> None:
        held_out = IMAGES / "test"
        init(Init(directory, CHECKPOINT, IMAGES / "train", preserve_held_out=held_out), QUIET)
        self.ledger = open_ledger(directory)
        files = [
            ImageFile(path, folder.name)
            for folder in sorted(held_out.iterdir())
            for path in sorted(folder.iterdir())[:ASKED]
        ]
        exam = Exam(files, np.zeros(len(files), bool), [], ASSETS / "questions.json")
        exam.questions = exam.questions[:QUESTIONS]
        self.exam, self.before = exam, exam.ask(load_vlm(CHECKPOINT))

    def request(self, concept: str) -> Request:
        preserve = self.ledger.preserve
        return Request(concept, preserve.of_classes(sorted(matches(concept, preserve.labels))))

    def features(
        self, concepts: Sequence[str], linears: Sequence[FrozenLinear], config: RunConfig
    ) -> tuple[Divided, Extracted]:
        """The images of some requests, and their features by some Linears."""
        divided = divide([self.request(one) for one in concepts], self.ledger.preserve)
        tower = replace(self.ledger.tower, linears=tuple(linears))
        return divided, extracted_of(divided, tower, config)

    def fitted(
        self, concepts: Sequence[str], combine: Combine, equal: bool, target: str = "near"
    ) -> Edit:
        """The adapter of a solve."""
        config = self.ledger.config.replace(**{"target": target} | OF_TARGET.get(target, {}))
        begun = time.process_time()
        divided, extracted = self.features(concepts, self.ledger.tower.linears, config)
        probes = Probes(extracted)
        named = None if equal else probes.named_in_training
        fit = JointFit(named) if combine == "joint" else SumOfFits(None, named)
        fitted = fit(extracted, config, QUIET, None, None)
        adapter = fitted.found.result.adapter
        names = [one.concept for one in divided.requests]
        facts = {
            "strengths": dict(zip(names, fitted.strengths, strict=True)),
            "cpu_seconds": time.process_time() - begun,
        }
        return Edit(divided, extracted, probes, adapter, facts)

    def stacked(self, order: Sequence[str]) -> Edit:
        """Each request fitted on the model that is edited already, and merged into it."""
        linears, adapters = self.ledger.tower.linears, []
        for count, concept in enumerate(order, 1):
            divided, extracted = self.features(order[:count], linears, self.ledger.config)
            (number,) = (
                i for i, one in enumerate(divided.requests) if one.concept == concept
            )  # fmt: skip
            one = only(extracted, owners(extracted) == number, self.ledger.config)
            adapter = fit_adapter(one, self.ledger.config, QUIET).found.result.adapter
            linears = tuple(merged(linear, adapter) for linear in linears)
            adapters.append(changes_of(adapter))
        ledger = self.ledger
        divided, extracted = self.features(order, ledger.tower.linears, ledger.config)
        return Edit(divided, extracted, Probes(extracted), added(adapters, [1.0] * len(order)))

    def ask(self, adapter: LoraAdapter) -> list[Asked]:
        """The model's answers with an adapter."""
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "adapter"
            porting.save_peft(adapter, saved, base_model_name_or_path=str(CHECKPOINT))
            return self.exam.ask(load_vlm(CHECKPOINT, saved))

    def measure(self, edit: Edit) -> dict[str, Any]:
        """What is named and kept of the requests of an edit, before and after."""
        asked = self.ask(edit.adapter)
        return {
            "requests": len(edit.divided.requests),
            "rank": edit.adapter.rank,
            "named": {"model": self.named(edit.divided.requests, asked), **probed(edit)},
            "model": {
                "before": self.kept(edit.divided, self.before),
                "after": self.kept(edit.divided, asked),
            },
            "probes": kept_by_probes(edit),
            **edit.facts,
        }

    def named(self, requests: Sequence[Request], asked: Sequence[Asked]) -> Shares:
        """The share of each request's images that the model names, by the worst question."""
        labels, found = self.exam.labels, {}
        for one in requests:
            own = np.isin(labels, sorted({*one.images.labels}))
            named = score(asked, labels, own, [])["named"]
            found[one.concept] = max(question["share"] for question in named)
        return found

    def kept(self, divided: Divided, asked: Sequence[Asked]) -> dict[str, float | None]:
        """The model's other answers."""
        forgotten = np.isin(self.exam.labels, sorted({*divided.forget.labels}))
        scores = score(asked, self.exam.labels, forgotten, [])
        return {name: scores[name] for name in ("selectivity", "others")}


def merged(linear: FrozenLinear, adapter: LoraAdapter) -> FrozenLinear:
    """A Linear with the change in its weight."""
    pair = adapter.pairs[linear.name]
    change = adapter.scale * np.asarray(pair.b) @ np.asarray(pair.a)
    return FrozenLinear(linear.name, (linear.weight + change).astype(np.float32), linear.bias)


def probed(edit: Edit) -> dict[str, Shares]:
    """The share of each request's images that a probe names, before and after."""
    rows = edit.probes.of_requests(edit.adapter, [1.0] * len(edit.divided.requests))
    return {
        name: {row["concept"]: row[key] for row in rows}
        for name, key in (("probe_before", "named_before"), ("probe", "named_after"))
    }


def kept_by_probes(edit: Edit) -> dict[str, float]:
    """Accuracy of the worst projector's probe on images to keep, before and after, and drift."""
    test = splits(edit.extracted, edit.extracted.test, edit.adapter)
    right = {
        when: min(
            float((edit.probes.fitted[name].predict(getattr(one, when)) == one.labels)[
                ~one.is_forget].mean())
            for name, one in test.items()
        )
        for when in ("before", "after")
    }  # fmt: skip
    moved = (drift(one.before[~one.is_forget], one.after[~one.is_forget]) for one in test.values())
    return right | {"drift": max(one["relative"] for one in moved)}


def orders(bench: Bench, options: Options, console: Console) -> dict[str, Any]:
    """Random orders: the bytes that a ledger gives, and what stacked adapters leave."""
    digests, rows = [], []
    for seed in range(options.orders):
        order = random.Random(seed).sample(options.concepts, len(options.concepts))
        with TemporaryDirectory() as folder:
            copy, out = Path(folder) / "ledger", Path(folder) / "run"
            shutil.copytree(bench.ledger.directory, copy)
            for concept in order:
                add(Add(copy, concept), QUIET)
            solve(Solve(copy, out), QUIET)
            digests.append(of_bytes((out / "adapter" / "adapter_model.safetensors").read_bytes()))
        for count in options.stacked:
            # The same requests in another order.
            chosen = [one for one in order if one in options.concepts[:count]]
            rows.append({"order": seed, **bench.measure(bench.stacked(chosen))})
            console.print(f"order {seed}, {digests[-1][:8]}, stacked: {brief(rows[-1])}")
    return {"digests": digests, "stacked": rows}


def undone(bench: Bench, concepts: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """Each request withdrawn: whether it is named again, and the others are not."""
    rows = []
    for concept in concepts:
        others = [one for one in concepts if one != concept]
        edit = bench.fitted(others, get_args(Combine)[0], False)
        asked, request = bench.ask(edit.adapter), bench.request(concept)
        test = splits(edit.extracted, edit.extracted.test, edit.adapter).items()
        classes = sorted({*request.images.labels})
        again = {
            when: min(
                float(np.isin(edit.probes.fitted[name].predict(rows_of(one, when, classes)),
                              classes).mean())
                for name, one in test
            )
            for when in ("before", "after")
        }  # fmt: skip
        rows.append(
            {
                "concept": concept,
                "model": {
                    "before": self_named(bench, request, bench.before),
                    "after": self_named(bench, request, asked),
                },
                "probes": again,
                "others_named": {
                    "model": max(bench.named(edit.divided.requests, asked).values()),
                    "probes": max(probed(edit)["probe"].values()),
                },
                "drift": kept_by_probes(edit)["drift"],
            }
        )
        console.print(f"undo {concept}: {rows[-1]}")
    return rows


def self_named(bench: Bench, request: Request, asked: Sequence[Asked]) -> float:
    return bench.named([request], asked)[request.concept]


def rows_of(split: Any, when: str, classes: Sequence[str]) -> np.ndarray:
    """The embeddings of some classes."""
    rows: np.ndarray = getattr(split, when)[np.isin(split.labels, classes)]
    return rows


def brief(row: Mapping[str, Any]) -> str:
    """One line of a row."""
    named = {name: max(shares.values()) for name, shares in row["named"].items()}
    after = row["model"]["after"]
    return f"{row['requests']}: named {named}, {after}, {row['probes']}"


def main() -> None:
    options = tyro.cli(Options)
    console = Console(stderr=True)
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "ledger")
        sets = [("classes", options.concepts[:count]) for count in options.counts]
        for name, concepts in [
            *sets,
            ("unseen", options.unseen),
            ("overlapping", options.overlapping),
        ]:
            for combine in get_args(Combine):
                for equal in (False, True):
                    edit = bench.fitted(concepts, combine, equal)
                    row = {"set": name, "combine": combine, "equal": equal} | bench.measure(edit)
                    results["rows"].append(row)
                    console.print(f"{name} {combine} equal={equal} {brief(row)}")
                    if set(edit.facts["strengths"].values()) == {1.0}:
                        # The same fit.
                        break
        for name, concepts in (
            ("stand_in", options.concepts[: options.stand_in]),
            ("unseen, stand_in", options.unseen),
        ):
            edit = bench.fitted(concepts, "sum", False, STAND_IN)
            row = {"set": name, "combine": "sum", "equal": False} | bench.measure(edit)
            results["rows"].append(row)
            console.print(f"{name} {brief(row)}")
        asked_for = [bench.request(one) for one in options.concepts]
        results["before"] = bench.named(asked_for, bench.before)
        results["orders"] = orders(bench, options, console)
        write(options.out, results)
        results["undo"] = undone(bench, options.concepts, console)
    write(options.out, results)


if __name__ == "__main__":
    main()
