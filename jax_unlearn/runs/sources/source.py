"""What a run does with its samples: features, the training problem, the paths before and after.

A session is a checkpoint and the samples to forget and to keep: `ImageSession` for images through a
Qwen3 tower, `TextSession` and `ClipImageSession` through CLIP, and those of `saved`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from rich.console import Console

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.evaluate.probes import Split, read_splits
from jax_unlearn.evaluate.score import Score, fit_probes, score
from jax_unlearn.features.samples import Features, Sides, images
from jax_unlearn.features.similarity import most_similar
from jax_unlearn.features.statistics_file import GROUPS, save_statistics
from jax_unlearn.features.streaming import Granularity
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import Part
from jax_unlearn.objective.projector import Path
from jax_unlearn.objective.targets import (
    NEIGHBOURS,
    TARGETS,
    Outputs,
    Target,
    TargetKind,
    neutral_target,
)
from jax_unlearn.runs.fingerprint import Facts, identity
from jax_unlearn.runs.settings.config import Optimizer, RunConfig
from jax_unlearn.runs.settings.sweep_config import SweepConfig, sweep_of
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import shape_of
from jax_unlearn.runtime.resume import Journal
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.config import check
from jax_unlearn.solvers.erase import Erasable
from jax_unlearn.solvers.grid import Setting

# Targets draw from a stream of their own: the adapter's init uses the seed's key itself.
TARGET_STREAM = 1


class Session(ABC):
    """A checkpoint and a run's samples, ready to extract.

    Args:
        paths: every path that is read in evaluation.
        adapted: full names of the Linears that the run changes.

    Raises:
        UserError: settings that cannot be meant for these Linears.
    """

    # The family of a checkpoint without config.json.
    model_type = "qwen3_vl"
    # Targets that the seed has a say in.
    drawn: tuple[TargetKind, ...] = ("random", "matched")
    # The devices that run the tower; none where only the first of JAX's is used.
    mesh: Mesh | None = None
    # Where a run that is not finished saves what it has; none keeps nothing.
    journal: Journal | None = None

    def __init__(
        self,
        config: RunConfig,
        console: Console,
        dataset: Dataset,
        paths: Sequence[Path],
        adapted: list[str],
    ) -> None:
        self.config, self.console, self.dataset = config, console, dataset
        self.paths, self.adapted = paths, adapted
        self.reader = ImageReader(config.strict)
        shapes = {name: shape for path in paths for name, shape in path.shapes.items()}
        tried = sweep_of(config)
        for one in [s.config(config) for s in self.settings(tried)] if tried else [config]:
            check(one, {name: shapes[name] for name in adapted})

    @abstractmethod
    def train_features(self, granularity: Granularity) -> Sides:
        """Features of the samples to train on."""

    @abstractmethod
    def test_features(self) -> Sides:
        """Features of the held-out samples, one row each."""

    @abstractmethod
    def nothing(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """Each path's embedding of a sample that says nothing, by the path's name."""

    def blank(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """Where the target of that name sends the rows of each path, by the path's name."""
        return self.nothing(sides)

    def evaluate(self, train: Sides, test: Sides, adapter: LoraAdapter) -> dict[str, Any]:
        """What is measured on held-out samples, for metrics.json; `train` are `image_means`."""
        return read_splits(self.splits(train, adapter), self.splits(test, adapter))

    def scorer(self, train: Sides, test: Sides) -> Callable[[LoraAdapter], Score]:
        """Scores adapters on held-out samples; `train` are `image_means`."""
        nothing = LoraAdapter({}, alpha=1.0, rank=1)
        probes = fit_probes(self.splits(train, nothing))
        return lambda adapter: score(probes, self.splits(test, adapter))

    def pictures(self, test: Sides) -> list[list[ImageFile]]:
        """Rows of images for the report: what is forgotten, what is kept."""
        return [images(test.forget), images(test.preserve)]

    @property
    def frozen(self) -> Sequence[Path]:
        """The paths and whatever other Linears the result is judged by."""
        return self.paths

    @property
    def judged_by(self) -> dict[str, Features]:
        """Features besides the samples' that the result is judged by."""
        return {}

    def save(self, directory: FilePath, train: Sides, test: Sides) -> None:
        """Leave in a run's directory what it takes to train again, unless a path needs its rows."""
        if self.config.save_statistics and all(path.is_linear for path in self.paths):
            groups = (train.forget, train.preserve, test.forget, test.preserve)
            features = dict(zip(GROUPS, groups, strict=True)) | self.judged_by
            save_statistics(directory, features, self.frozen, self.nothing(train), self.counts())

    @abstractmethod
    def contents(self) -> Iterator[np.ndarray | bytes]:
        """Whatever besides the samples decides the features."""

    def identity(self) -> Facts:
        """What must be the same for all processes of a run, and for one that goes on."""
        groups = self.dataset.groups()
        samples = {name: self.dataset.fingerprint(name) for name in groups}
        counts = {name: len(group) for name, group in groups.items()}
        # By its shape: sums in another order may differ in their last bit.
        devices = shape_of(self.mesh) if self.mesh else 1
        return identity(self.config, samples, counts, self.contents(), devices)

    def stage(self, name: str) -> Stage:
        """A part of the run, to go on from where it was stopped."""
        return self.journal.stage(name) if self.journal else Stage()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names of images that could not be read, with why."""
        return self.reader.skipped

    @property
    def work(self) -> dict[str, int | float]:
        """What the passes of the tower came to, for metrics.json."""
        return {}

    def having(self, **changes: Any) -> "Session":
        """The same features with other settings; the Linears to adapt follow from them."""
        other = copy.copy(self)
        other.config = replace(self.config, **changes)
        other.adapted = other.linears_to_adapt()
        return other

    def linears_to_adapt(self) -> list[str]:
        """Full names of the Linears that the settings name, of those that were extracted."""
        return self.adapted

    def counts(self) -> dict[str, Any]:
        """How many samples each group has, the skipped ones left out."""
        skipped = {name for name, _ in self.skipped}
        counts = {
            name: sum(getattr(sample, "name", None) not in skipped for sample in group)
            for name, group in self.dataset.groups().items()
        }
        named = [f"{name}: {reason}" for name, reason in self.skipped]
        return {**counts, "skipped": named, "fingerprint": self.dataset.fingerprint()}

    @property
    def linear_paths(self) -> list[Path]:
        """Those that the run changes and for which statistics of the rows will do."""
        return [p for p in self.paths if p.is_linear and p.last_tap in self.adapted]

    @property
    def optimizer(self) -> Optimizer:
        """That of the config, or the closed form wherever there is one."""
        linear = {path.last_tap for path in self.linear_paths}
        return self.config.optimizer or ("closed_form" if linear >= set(self.adapted) else "adam")

    def settings(self, tried: SweepConfig) -> list[Setting]:
        """What a sweep tries: no two that would come to the same.

        Raises:
            UserError: values without a meaning, or none.
        """
        closed = self.optimizer == "closed_form"
        if closed and tried.learning_rates:
            raise UserError(
                "--learning-rates: the closed form takes no steps; leave it out, or take "
                "--optimizer adam"
            )
        # Adam's start and those over the terms' sizes are drawn whatever the target is.
        drawn = self.drawn if closed and tried.starts == 1 else TARGETS
        return tried.grid().settings(tried.sample, drawn)

    @property
    def split(self) -> int | None:
        """Seed of the images to choose the adapter by, if some are."""
        return self.config.seed if self.config.select == "held_out" else None

    def problems(self, sides: Sides) -> tuple[dict[str, Part], dict[str, Part] | None]:
        """(problem to fit, problem to choose the adapter by), on as few rows as carry the loss.

        The second one is a fifth of the training images, only with `select="held_out"`. Targets
        are made for all of them, so that both parts go to the same place.
        """
        parts = dict(
            path.problem(self.adapted, sides.forget, target, sides.preserve)
            for path, target in self._targets(sides)
        )
        fit = {name: of_path[0] for name, of_path in parts.items()}
        if self.split is None:
            return fit, None
        return fit, {name: of_path[1] for name, of_path in parts.items()}

    def erasable(self, sides: Sides) -> dict[str, Erasable]:
        """What LEACE needs of each path that is adapted, by the names of their Linears.

        Raises:
            UserError: a Linear that is not the last of its path is to be adapted.
        """
        if set(self.adapted) - {path.last_tap for path in self.linear_paths}:
            raise UserError("--optimizer leace: erases from what linear_fc2 gives; leave --linears")
        return {
            path.last_tap: Erasable(
                *path.last_linear,
                sides.forget.statistics[path.last_tap],
                sides.preserve.statistics[path.last_tap],
                target,
            )
            for path, target in self._targets(sides)
        }

    def _targets(self, sides: Sides) -> Iterator[tuple[Path, Target]]:
        """Every path that is adapted, and where it is to send the rows to forget."""
        similar = self._similar(sides) if self.config.target == "near" else None
        blank = self.blank(sides) if self.config.target == "blank" else {}
        key = jax.random.fold_in(jax.random.key(self.config.seed), TARGET_STREAM)
        means, step = sides.image_means(), self.config.near_step
        for path, subkey in zip(self.paths, jax.random.split(key, len(self.paths)), strict=True):
            if any(name in self.adapted for name in path.shapes):
                outputs = self._outputs(path, sides, means, blank, similar)
                yield path, neutral_target(self.config.target, outputs, subkey, step)

    def _outputs(
        self,
        path: Path,
        sides: Sides,
        means: Sides,
        blank: dict[str, np.ndarray],
        similar: np.ndarray | None,
    ) -> Outputs:
        name = path.last_tap
        forget, preserve = (path.output(s.taps[name].x) for s in (means.forget, means.preserve))
        of_rows = np.stack([sides.forget.mean(name), sides.preserve.mean(name)])
        forget_mean, preserve_mean = path.output(of_rows)
        return Outputs(forget, preserve, forget_mean, preserve_mean, blank.get(path.name), similar)

    def _similar(self, sides: Sides) -> Int[np.ndarray, "samples k"]:
        """For each sample to forget, the preserved ones most like it over all paths."""
        means = sides.image_means()
        outputs = [path.output(means.both(path.last_tap)) for path in self.paths]
        return most_similar(outputs, sides.is_forget, NEIGHBOURS)

    def splits(self, sides: Sides, adapter: LoraAdapter) -> dict[str, Split]:
        """Mean embeddings of every path, before and after the edit; from image means."""
        splits = {}
        for path in self.paths:
            before = path.output(sides.both(path.last_tap))
            changes = [path.change(side, adapter) for side in (sides.forget, sides.preserve)]
            after = before + np.concatenate(changes)
            splits[path.name] = Split(before, after, sides.labels, sides.is_forget)
        return splits
