"""A run's statistics in its directory: to train again without its images and without a tower."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_unlearn.config import RunConfig, read_config
from jax_unlearn.data.image import ImageFile
from jax_unlearn.dataset import Dataset
from jax_unlearn.errors import UserError
from jax_unlearn.gather import Granularity
from jax_unlearn.identity import Facts, identity
from jax_unlearn.merger_path import MergerPath, adapted_linears
from jax_unlearn.merger_problem import LAST
from jax_unlearn.rows import Features, Tap, images
from jax_unlearn.session import Session, Sides
from jax_unlearn.statistics import Statistics

FILE = "statistics.safetensors"
GROUPS = ("forget", "preserve", "forget_held_out", "preserve_held_out")
# What was decided when the images were seen; a preset decides some of it.
SEEN = ("checkpoint", "forget", "preserve", "forget_held_out", "preserve_held_out", "concept")
EXTRACTED = (*SEEN, "preset", "linears", "granularity", "max_pixels", "dtype", "keep_means")

Blank = dict[str, Float[np.ndarray, " e"]]


def save_statistics(
    directory: Path, session: Session, train: Sides, test: Sides, blank: Blank
) -> None:
    """Everything of a run that was made from images: statistics, images' means, frozen Linears."""
    sides = dict(
        zip(GROUPS, (train.forget, train.preserve, test.forget, test.preserve), strict=True)
    )
    arrays: dict[str, np.ndarray] = {f"blank.{name}": row for name, row in blank.items()}
    for group, features in sides.items():
        arrays |= feature_arrays(group, features)
    for path in session.paths:
        weight, bias = path.last_linear
        arrays |= {f"path.{path.name}.weight": weight, f"path.{path.name}.bias": bias}
    facts = {
        "paths": [path.name for path in session.paths],
        "summed": list(train.forget.statistics),
        "samples": session.counts(),
        "files": {g: [[f.name, f.label] for f in images(s)] for g, s in sides.items()},
    }
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(dense, directory / FILE, metadata={"facts": json.dumps(facts)})


def feature_arrays(group: str, features: Features) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, tap in features.taps.items():
        arrays |= {f"{group}.{name}.x": tap.x, f"{group}.{name}.image": tap.image}
    for name, parts in features.statistics.items():
        for number, part in enumerate(parts):
            arrays |= part.arrays(f"{group}.{name}.{number}")
    if features.choosing is not None:
        arrays[f"{group}.choosing"] = features.choosing
    return arrays


class SavedSession(Session):
    """The statistics of an earlier run with other settings; `config.statistics` is its directory.

    Raises:
        UserError: not a run, one without statistics, or a setting that its images would be needed
            for.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        assert config.statistics is not None
        self.file = config.statistics / FILE
        check_same(config, read_config(config.statistics))
        self.arrays, self.facts = read_statistics(self.file)
        groups = {g: self._files(g) for g in GROUPS}
        paths = [self._path(name) for name in self.facts["paths"]]
        adapted = adapted_linears(config.targets, config.linears, self.facts["paths"])
        if missing := sorted(set(adapted) - set(self.facts["summed"])):
            raise UserError(f"{self.file}: has nothing of {', '.join(missing)}; leave them out")
        super().__init__(config, console, Dataset(**groups), paths, adapted)
        if (f"{GROUPS[0]}.choosing" in self.arrays) != (self.split is not None):
            raise UserError(
                f"--select {config.select}: {config.statistics} was made without images to choose "
                "by, or with; select held_out as it did, or not at all"
            )

    def _files(self, group: str) -> list[ImageFile]:
        return [ImageFile(Path(path), label) for path, label in self.facts["files"][group]]

    def _path(self, name: str) -> MergerPath:
        linear = (self.arrays[f"path.{name}.weight"], self.arrays[f"path.{name}.bias"])
        return MergerPath(name, {LAST: linear})

    def _features(self, group: str) -> Features:
        arrays, taps = self.arrays, {}
        for path in self.paths:
            key = f"{group}.{path.last_tap}"
            taps[path.last_tap] = Tap(arrays[f"{key}.x"], arrays[f"{key}.image"])
        choosing = arrays.get(f"{group}.choosing")
        parts = range(1 if choosing is None else 2)
        gathered = {
            name: tuple(Statistics.of_arrays(arrays, f"{group}.{name}.{part}") for part in parts)
            for name in self.facts["summed"]
            if f"{group}.{name}.0.count" in arrays
        }
        return Features(tuple(self._files(group)), taps, gathered, choosing)

    def train_features(self, granularity: Granularity) -> Sides:
        """The granularity is that of the earlier run."""
        return Sides(self._features(GROUPS[0]), self._features(GROUPS[1]))

    def test_features(self) -> Sides:
        return Sides(self._features(GROUPS[2]), self._features(GROUPS[3]))

    def blank(self, sides: Sides) -> Blank:
        blank = {
            path.name: self.arrays[f"blank.{path.name}"]
            for path in self.paths
            if f"blank.{path.name}" in self.arrays
        }
        if not blank:
            raise UserError(f"{self.file}: has no blank image for --target blank; run without it")
        return blank

    def contents(self) -> Iterator[bytes]:
        """The file."""
        yield self.file.read_bytes()

    def identity(self) -> Facts:
        """The images need not be there any more, and are not asked for."""
        samples = dict.fromkeys(GROUPS, self.facts["samples"]["fingerprint"])
        counts = {name: len(files) for name, files in self.facts["files"].items()}
        return identity(self.config, samples, counts, self.contents(), 1)

    def counts(self) -> dict[str, Any]:
        """Of the earlier run."""
        return dict(self.facts["samples"])

    def pictures(self, test: Sides) -> list[list[ImageFile]]:
        """Those that are still there."""
        return [
            [file for file in images(side) if file.path.is_file()]
            for side in (test.forget, test.preserve)
        ]

    def save(self, directory: Path, train: Sides, test: Sides) -> None:
        """A copy, so that the new run does not depend on the earlier one."""
        shutil.copyfile(self.file, directory / FILE)


def check_same(config: RunConfig, earlier: RunConfig) -> None:
    """Refuse settings that the statistics do not know of.

    Raises:
        UserError: names the setting.
    """
    earlier = replace(earlier, out=config.out)
    for name in EXTRACTED:
        if getattr(config, name) != getattr(earlier, name):
            option = name.replace("_", "-")
            raise UserError(
                f"--{option}: {config.statistics} was made with another; run without --statistics"
            )


def read_statistics(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """The arrays and the facts about them.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; only a run over images on linear_fc2 leaves one")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return arrays, json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again from the images") from error
