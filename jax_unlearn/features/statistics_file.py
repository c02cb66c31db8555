"""Save `Extracted` to statistics.safetensors, and read it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_unlearn.data.dataset import GROUPS, Dataset
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.extracted import KINDS, Extracted, SourceKind, kind_of
from jax_unlearn.features.requests import Requests, membership
from jax_unlearn.features.samples import Sample, SampleFeatures, Sides, TapRows
from jax_unlearn.features.stand_in import Counterpart, StandIn
from jax_unlearn.features.statistics import Statistics
from jax_unlearn.features.statistics_check import check_content, texts
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.models.qwen3_vision.config import LINEARS
from jax_unlearn.runtime.digests import DIGEST, changed, of_arrays
from jax_unlearn.runtime.errors import UserError

FILE = "statistics.safetensors"
PARTS = ("weight", "bias")
FACTS = ("paths", "summed", "samples", "groups", "counterparts", "stand_ins", "requests")


def save_statistics(directory: Path, extracted: Extracted, most: int | None = None) -> int:
    """Write the file, unless its arrays have more than `most` bytes; returns how many they have.

    Every adapted Linear must have statistics.
    """
    train, test = extracted.train, extracted.test
    groups = (train.forget, train.preserve, test.forget, test.preserve)
    features = dict(zip(GROUPS, groups, strict=True)) | dict(extracted.judged)
    linears = (*extracted.linears, *extracted.judged_linears)
    arrays: dict[str, np.ndarray] = {f"blank.{k}": row for k, row in extracted.empty.items()}
    for group, of_group in features.items():
        arrays |= feature_arrays(group, of_group)
    for one in linears:
        arrays |= {
            f"path.{one.projector}.weight": one.weight,
            f"path.{one.projector}.bias": one.bias,
        }
    for number, stand_in in enumerate(extracted.stand_ins):
        arrays |= stand_in.arrays(f"stand_in.{number}")
    if (asked := extracted.requests) is not None:
        arrays |= asked.arrays()
    facts = {
        "paths": [one.projector for one in linears],
        "summed": list(train.forget.statistics),
        "samples": dict(extracted.counts),
        "groups": {group: describe(of_group) for group, of_group in features.items()},
        "counterparts": [asdict(one) for one in extracted.counterparts],
        "stand_ins": len(extracted.stand_ins),
        "requests": asked
        and {"ids": asked.ids, "concepts": asked.concepts, "ledger": asked.ledger},
    }
    size = sum(array.nbytes for array in arrays.values())
    if most is not None and size > most:
        return size
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts[DIGEST] = of_arrays(dense, json.dumps(facts))
    # One entry, because safetensors writes several in any order.
    save_file(dense, directory / FILE, metadata={"facts": json.dumps(facts)})
    return size


def feature_arrays(group: str, features: SampleFeatures) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, tap in features.taps.items():
        arrays |= {f"{group}.{name}.x": tap.x, f"{group}.{name}.image": tap.image}
    for name, tokens in features.tokens.items():
        arrays |= {f"{group}.{name}.tokens": tokens.x, f"{group}.{name}.of_image": tokens.image}
    for name, parts in features.statistics.items():
        for number, part in enumerate(parts):
            arrays |= part.arrays(f"{group}.{name}.{number}")
    if features.choosing is not None:
        arrays[f"{group}.choosing"] = features.choosing
    return arrays


def describe(features: SampleFeatures) -> dict[str, Any]:
    """The facts of a group that are not arrays: taps, prompts and images."""
    prompts = [[s.text, s.label] for s in features.files if isinstance(s, Prompt)]
    # Absolute, so that they hold in any working directory.
    here = Path.cwd()
    images = [[str(here / s.name), s.label] for s in features.files if isinstance(s, ImageFile)]
    return {"taps": list(features.taps), "prompts": prompts, "images": images}


@dataclass(frozen=True)
class StatisticsFile:
    """The arrays and facts of a file that `save_statistics` wrote."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of the samples, as in metrics.json."""
        return dict(self.facts["samples"])

    @property
    def splits(self) -> bool:
        """Whether some images were held out to choose the adapter by (`select="held_out"`)."""
        return f"{GROUPS[0]}.choosing" in self.arrays

    def linears(self) -> tuple[FrozenLinear, ...]:
        """The last Linear of each projector, adaptable ones first."""
        return tuple(
            FrozenLinear(last_linear(name), *(self.arrays[f"path.{name}.{part}"] for part in PARTS))
            for name in self.facts["paths"]
        )

    def samples(self, group: str) -> list[Sample]:
        facts = self.facts["groups"][group]
        images = [ImageFile(Path(path), label) for path, label in facts["images"]]
        return [*(Prompt(text, label) for text, label in facts["prompts"]), *images]

    def dataset(self) -> Dataset[Any]:
        """All samples of the run."""
        forget, preserve, forget_test, preserve_test = map(self.samples, GROUPS)
        return Dataset(forget, preserve, forget_test, preserve_test)

    def features(self, group: str) -> SampleFeatures:
        arrays, taps = self.arrays, self.facts["groups"][group]["taps"]
        choosing = arrays.get(f"{group}.choosing")
        parts = range(1 if choosing is None else 2)
        statistics = {
            name: tuple(Statistics.of_arrays(arrays, f"{group}.{name}.{part}") for part in parts)
            for name in self.facts["summed"]
            if f"{group}.{name}.0.count" in arrays
        }
        rows = {n: TapRows(arrays[f"{group}.{n}.x"], arrays[f"{group}.{n}.image"]) for n in taps}
        tokens = {
            n: TapRows(arrays[f"{group}.{n}.tokens"], arrays[f"{group}.{n}.of_image"])
            for n in taps
            if f"{group}.{n}.tokens" in arrays
        }
        return SampleFeatures(tuple(self.samples(group)), rows, statistics, choosing, tokens)

    def extracted(self) -> Extracted:
        """The `Extracted` that was saved."""
        train, test = (Sides(*map(self.features, GROUPS[i : i + 2])) for i in (0, 2))
        linears = self.linears()
        adaptable = linears[: adaptable_count(self.facts["paths"])]
        return Extracted(
            linears=adaptable,
            train=train,
            test=test,
            empty={one.projector: self.arrays[f"blank.{one.projector}"] for one in adaptable},
            counts=self.counts,
            judged_linears=linears[len(adaptable) :],
            judged={n: self.features(n) for n in self.facts["groups"] if n not in GROUPS},
            counterparts=tuple(
                Counterpart(
                    one["concept"], tuple(one["forget"]), one["name"], tuple(one["preserve"])
                )
                for one in self.facts["counterparts"]
            ),
            stand_ins=tuple(
                StandIn.of_arrays(self.arrays, f"stand_in.{number}")
                for number in range(self.facts["stand_ins"])
            ),
            requests=self.requests(),
        )

    def requests(self) -> Requests | None:
        """The requests of the run of a ledger; None for any other run."""
        facts = self.facts["requests"]
        if facts is None:
            return None
        train, test = (
            membership(self.arrays[f"requests.{part}"], len(facts["ids"]), len(self.samples(group)))
            for part, group in (("train", GROUPS[0]), ("test", GROUPS[2]))
        )
        return Requests(tuple(facts["ids"]), tuple(facts["concepts"]), train, test, facts["ledger"])


def last_linear(projector: str) -> str:
    """Full name of a projector's last Linear."""
    return projector if projector in KINDS else f"{projector}.{LINEARS[-1]}"


def adaptable_count(projectors: Sequence[str]) -> int:
    """How many of a file's projectors, the first, may be adapted.

    CLIP's second projection is only needed for evaluation.
    """
    return len(projectors) if kind_of(last_linear(projectors[0])) == "qwen_images" else 1


def statistics_kind(directory: Path) -> SourceKind:
    """The source kind of a run's statistics file; raises as `read_statistics` does."""
    return kind_of(last_linear(read_statistics(directory).facts["paths"][0]))


def read_statistics(directory: Path) -> StatisticsFile:
    """Read the statistics file of a run.

    Raises:
        UserError: there is no such file, it cannot be read, or it has changed since it was written.
    """
    path = directory / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; a run writes it with --save-statistics yes, or if it is small, "
            "and never with linear_fc1: run again from the images"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
        if (digest := facts.pop(DIGEST, None)) is None or "requests" not in facts:
            raise UserError(f"{path}: was made by an earlier version; run again from the images")
        if digest != of_arrays(arrays, json.dumps(facts)):
            raise changed(path)
        facts = {key: facts[key] for key in FACTS}
        projectors = texts(facts["paths"], "paths")
        if not projectors or len(set(projectors)) < len(projectors):
            raise ValueError("it has no projector, or one twice")
        linears = {name: last_linear(name) for name in projectors}
        check_content(arrays, facts, linears, adaptable_count(projectors))
        return StatisticsFile(path, arrays, facts)
    except (SafetensorError, OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again from the images") from error
