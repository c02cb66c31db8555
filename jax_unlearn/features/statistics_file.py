"""statistics.safetensors: everything of a run that was made from its samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.samples import Sample, SampleFeatures, TapRows
from jax_unlearn.features.statistics import Statistics
from jax_unlearn.objective.projector import Path
from jax_unlearn.runtime.errors import UserError

FILE = "statistics.safetensors"
GROUPS = tuple(field.name for field in fields(Dataset))
FACTS = ("paths", "summed", "samples", "groups")


def save_statistics(
    directory: FilePath,
    features: Mapping[str, SampleFeatures],
    paths: Sequence[Path],
    blank: Mapping[str, Float[np.ndarray, " e"]],
    counts: Mapping[str, Any],
) -> None:
    """Write the file.

    Args:
        features: of the four GROUPS, and of whatever else the result is judged by.
        paths: whose frozen Linears are kept, those of the session first.
        blank: embeddings of a sample that says nothing, by the paths' names.
        counts: of the samples, as metrics.json has them.
    """
    arrays: dict[str, np.ndarray] = {f"blank.{name}": row for name, row in blank.items()}
    for group, of_group in features.items():
        arrays |= feature_arrays(group, of_group)
    for path in paths:
        weight, bias = path.last_linear
        arrays |= {f"path.{path.name}.weight": weight, f"path.{path.name}.bias": bias}
    facts = {
        "paths": [path.name for path in paths],
        "summed": list(features[GROUPS[0]].statistics),
        "samples": counts,
        "groups": {group: describe(of_group) for group, of_group in features.items()},
    }
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(dense, directory / FILE, metadata={"facts": json.dumps(facts)})


def feature_arrays(group: str, features: SampleFeatures) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, tap in features.taps.items():
        arrays |= {f"{group}.{name}.x": tap.x, f"{group}.{name}.image": tap.image}
    for name, parts in features.statistics.items():
        for number, part in enumerate(parts):
            arrays |= part.arrays(f"{group}.{name}.{number}")
    if features.choosing is not None:
        arrays[f"{group}.choosing"] = features.choosing
    return arrays


def describe(features: SampleFeatures) -> dict[str, Any]:
    """What of a group is no array."""
    prompts = [[s.text, s.label] for s in features.files if isinstance(s, Prompt)]
    images = [[s.name, s.label] for s in features.files if isinstance(s, ImageFile)]
    return {"taps": list(features.taps), "prompts": prompts, "images": images}


@dataclass(frozen=True)
class StatisticsFile:
    """What `save_statistics` was given."""

    path: FilePath
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @property
    def paths(self) -> list[str]:
        """Names of the paths, those of the session first."""
        return list(self.facts["paths"])

    @property
    def summed(self) -> list[str]:
        """Full names of the Linears that there are statistics of."""
        return list(self.facts["summed"])

    @property
    def counts(self) -> dict[str, Any]:
        """Of the samples, as metrics.json has them."""
        return dict(self.facts["samples"])

    @property
    def splits(self) -> bool:
        """Whether some images were set apart to choose the adapter by."""
        return f"{GROUPS[0]}.choosing" in self.arrays

    def linear(self, path: str) -> tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]:
        """Weight and bias of a path's last Linear."""
        return self.arrays[f"path.{path}.weight"], self.arrays[f"path.{path}.bias"]

    def blank(self, path: str) -> Float[np.ndarray, " e"]:
        """A path's embedding of a sample that says nothing."""
        return self.arrays[f"blank.{path}"]

    def has(self, group: str) -> bool:
        return group in self.facts["groups"]

    def samples(self, group: str) -> list[Sample]:
        facts = self.facts["groups"][group]
        images = [ImageFile(FilePath(path), label) for path, label in facts["images"]]
        return [*(Prompt(text, label) for text, label in facts["prompts"]), *images]

    def dataset(self) -> Dataset[Any]:
        """All samples of the run."""
        return Dataset(*map(self.samples, GROUPS))

    def features(self, group: str) -> SampleFeatures:
        arrays, taps = self.arrays, self.facts["groups"][group]["taps"]
        choosing = arrays.get(f"{group}.choosing")
        parts = range(1 if choosing is None else 2)
        gathered = {
            name: tuple(Statistics.of_arrays(arrays, f"{group}.{name}.{part}") for part in parts)
            for name in self.summed
            if f"{group}.{name}.0.count" in arrays
        }
        rows = {n: TapRows(arrays[f"{group}.{n}.x"], arrays[f"{group}.{n}.image"]) for n in taps}
        return SampleFeatures(tuple(self.samples(group)), rows, gathered, choosing)


def read_statistics(directory: FilePath) -> StatisticsFile:
    """The file of a run.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    path = directory / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; linear_fc1 and --no-save-statistics leave none: run again "
            "from the images"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
            return StatisticsFile(path, arrays, {key: facts[key] for key in FACTS})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again from the images") from error
