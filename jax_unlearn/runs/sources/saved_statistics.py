"""Training again on a run's statistics, without its samples and without a tower."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.statistics_file import FILE, GROUPS, StatisticsFile, read_statistics
from jax_unlearn.features.streaming import Granularity
from jax_unlearn.objective.linear_projector import ProjectionPath
from jax_unlearn.objective.merger import LAST
from jax_unlearn.objective.projector import Path as EmbeddingPath
from jax_unlearn.objective.projectors import MergerPath, adapted_linears
from jax_unlearn.runs.fingerprint import Facts, identity
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.sources.clip_common import (
    IMAGE,
    TEXT,
    EmbeddedImages,
    EmbeddedNames,
    check_targets,
    shown_folders,
)
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runtime.errors import UserError

# What was decided when the samples were seen; a preset decides some of it.
SEEN = ("checkpoint", "forget", "preserve", "forget_held_out", "preserve_held_out", "concept")
NAMED = ("forget_text", "preserve_text", "train_templates", "template", "images", "other_images")
EXTRACTED = (
    *SEEN, *NAMED, "preset", "linears", "granularity", "max_pixels", "dtype", "keep_means",
)  # fmt: skip


class SavedSession(Session):
    """The statistics of an earlier run with other settings.

    Raises:
        UserError: a setting that its samples would be needed for.
    """

    def __init__(
        self,
        config: RunConfig,
        console: Console,
        file: StatisticsFile,
        paths: Sequence[EmbeddingPath],
        adapted: list[str],
    ) -> None:
        self.file = file
        if missing := sorted(set(adapted) - set(file.summed)):
            raise UserError(f"{file.path}: has nothing of {', '.join(missing)}; leave them out")
        super().__init__(config, console, file.dataset(), paths, adapted)
        if file.splits != (self.split is not None):
            raise UserError(
                f"--select {config.select}: {config.statistics} was made without images to choose "
                "by, or with; select held_out as it did, or not at all"
            )

    def train_features(self, granularity: Granularity) -> Sides:
        """The granularity is that of the earlier run."""
        return Sides(*map(self.file.features, GROUPS[:2]))

    def test_features(self) -> Sides:
        return Sides(*map(self.file.features, GROUPS[2:]))

    def nothing(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        return {path.name: self.file.blank(path.name) for path in self.paths}

    def contents(self) -> Iterator[bytes]:
        """The file."""
        yield self.file.path.read_bytes()

    def identity(self) -> Facts:
        """The samples need not be there any more, and are not asked for."""
        samples = dict.fromkeys(GROUPS, self.counts()["fingerprint"])
        counts = {name: len(group) for name, group in self.dataset.groups().items()}
        return identity(self.config, samples, counts, self.contents(), 1)

    def counts(self) -> dict[str, Any]:
        """Of the earlier run."""
        return self.file.counts

    def pictures(self, test: Sides) -> list[list[ImageFile]]:
        """Those that are still there."""
        return [[file for file in row if file.path.is_file()] for row in super().pictures(test)]

    def save(self, directory: Path, train: Sides, test: Sides) -> None:
        """A copy, so that the new run does not depend on the earlier one."""
        if self.config.save_statistics:
            shutil.copyfile(self.file.path, directory / FILE)


class SavedMergers(SavedSession):
    """What `ImageSession` left."""

    def __init__(self, config: RunConfig, console: Console, file: StatisticsFile) -> None:
        paths = [MergerPath(name, {LAST: file.linear(name)}) for name in file.paths]
        adapted = adapted_linears(config.targets, config.linears, file.paths)
        super().__init__(config, console, file, paths, adapted)


class SavedNames(SavedSession, EmbeddedNames):
    """What `TextSession` left."""

    def __init__(self, config: RunConfig, console: Console, file: StatisticsFile) -> None:
        self.path, self.visual = (ProjectionPath(n, *file.linear(n)) for n in (TEXT, IMAGE))
        folders = enumerate(shown_folders(config))
        self.shown = {folder: file.features(f"shown.{i}") for i, folder in folders}
        folders = enumerate(dict.fromkeys(config.other_images))
        self.others = {folder: file.features(f"others.{i}") for i, folder in folders}
        adapted = check_targets(config, TEXT)
        config = replace(config, targets=tuple(adapted))
        super().__init__(config, console, file, [self.path], adapted)


class SavedClipImages(SavedSession, EmbeddedImages):
    """What `ClipImageSession` left."""

    def __init__(self, config: RunConfig, console: Console, file: StatisticsFile) -> None:
        self.path, self.text = (ProjectionPath(n, *file.linear(n)) for n in (IMAGE, TEXT))
        self.names = file.features("names") if file.has("names") else None
        adapted = check_targets(config, IMAGE)
        config = replace(config, targets=tuple(adapted))
        super().__init__(config, console, file, [self.path], adapted)


def open_saved(config: RunConfig, console: Console) -> SavedSession:
    """The session of the run whose directory is `config.statistics`.

    Raises:
        UserError: not a run, one without statistics, or a setting that its samples would be needed
            for.
    """
    assert config.statistics is not None
    check_same(config, read_config(config.statistics))
    file = read_statistics(config.statistics)
    kind = {TEXT: SavedNames, IMAGE: SavedClipImages}.get(file.paths[0], SavedMergers)
    return kind(config, console, file)


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
