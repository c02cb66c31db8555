"""A checkpoint's tower and a run's images: features, the training problem, the evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console

import porting
from jax_unlearn.config import RunConfig
from jax_unlearn.data.folder import ImageFile, ImageReader, read_image
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.dataset import collect
from jax_unlearn.evaluate.readers import Fitted, Split, headline, read_all
from jax_unlearn.extract import Extractor, Granularity
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.merger_path import MergerPath, adapted_linears, load_paths
from jax_unlearn.objective import Part
from jax_unlearn.rows import Features, most_similar
from jax_unlearn.statistics import compress
from jax_unlearn.targets import NEIGHBOURS, Outputs, neutral_target
from jax_unlearn.train import check

# Targets draw from a stream of their own: the adapter's init uses the seed's key itself.
TARGET_STREAM = 1


@dataclass(frozen=True)
class Sides:
    """Features of the forget and the preserve images."""

    forget: Features
    preserve: Features

    def image_means(self) -> "Sides":
        return Sides(self.forget.image_means(), self.preserve.image_means())

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """All images, those to forget first."""
        return self.forget.files + self.preserve.files

    @property
    def is_forget(self) -> Bool[np.ndarray, " n"]:
        """Which of `files` are to be forgotten."""
        return np.arange(len(self.files)) < len(self.forget.files)

    def both(self, name: str) -> Float[np.ndarray, "rows d_in"]:
        """Rows at one tap, forget first."""
        return np.concatenate([self.forget.taps[name].x, self.preserve.taps[name].x])


class Session:
    """A checkpoint's tower and a run's images, ready to extract.

    Raises:
        UserError: whatever is wrong with the checkpoint, the images or the settings, before the
            tower sees the first image.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.dataset = collect(config)
        self.tower = porting.load_vision_tower(config.checkpoint, config.dtype)
        shape = self.tower.config
        self.preprocessor = load_preprocessor(config.checkpoint, shape, config.max_pixels)
        self.paths = load_paths(self.tower, self.adapted)
        linears = {name: shape for path in self.paths for name, shape in path.shapes.items()}
        check(config, {name: linears[name] for name in self.adapted})
        self.extractor = Extractor(self.tower, self.preprocessor, list(linears))
        self.reader = ImageReader(config.strict)

    @property
    def adapted(self) -> list[str]:
        """Names of the Linears that the run changes."""
        config = self.config
        return adapted_linears(config.targets, config.linears, self.tower.config.mergers)

    def extract(
        self,
        forget: Sequence[ImageFile],
        preserve: Sequence[ImageFile],
        granularity: Granularity,
        what: str,
    ) -> Sides:
        def side(files: Sequence[ImageFile], name: str) -> Features:
            text = f"{what} images to {name}"
            return self.extractor.extract(files, granularity, self.reader, text, self.console)

        return Sides(side(forget, "forget"), side(preserve, "preserve"))

    def train_features(self, granularity: Granularity) -> Sides:
        return self.extract(self.dataset.forget, self.dataset.preserve, granularity, "Training")

    def test_features(self) -> Sides:
        data = self.dataset
        return self.extract(data.forget_held_out, data.preserve_held_out, "images", "Held-out")

    def problems(self, sides: Sides) -> tuple[dict[str, Part], dict[str, Part] | None]:
        """(problem to fit, problem to choose the adapter by), on as few rows as carry the loss.

        The second one is a fifth of the training images, only with `select="held_out"`. Targets
        are made before the split, so that both parts go to the same place.
        """
        full = self._full_problem(sides)
        if self.config.select != "held_out":
            return compress(full), None
        # The rows of all paths are the same.
        tap, seed = self.paths[0].last_tap, self.config.seed
        forget, preserve = (s.held_out_rows(tap, seed) for s in (sides.forget, sides.preserve))
        fit = {name: part.take(~forget, ~preserve) for name, part in full.items()}
        choose = {name: part.take(forget, preserve) for name, part in full.items()}
        return compress(fit), compress(choose)

    def _full_problem(self, sides: Sides) -> dict[str, Part]:
        similar = self._similar(sides) if self.config.target == "near" else None
        blank = self._blank_taps(sides) if self.config.target == "blank" else {}
        key = jax.random.fold_in(jax.random.key(self.config.seed), TARGET_STREAM)
        adapted, parts = self.adapted, []
        for path, subkey in zip(self.paths, jax.random.split(key, len(self.paths)), strict=True):
            if any(name in adapted for name in path.shapes):
                outputs = self._outputs(path, sides, blank, similar)
                target = neutral_target(self.config.target, outputs, subkey, self.config.near_step)
                parts.append(path.problem(adapted, sides.forget, target, sides.preserve))
        return dict(parts)

    def _outputs(
        self,
        path: MergerPath,
        sides: Sides,
        blank: dict[str, np.ndarray],
        similar: np.ndarray | None,
    ) -> Outputs:
        name = path.last_tap
        forget, preserve = sides.forget.taps[name], sides.preserve.taps[name]
        return Outputs(
            path.output(forget.x),
            forget.image,
            path.output(preserve.x),
            preserve.image,
            path.output(blank[name]).mean(axis=0) if blank else None,
            similar,
        )

    def _similar(self, sides: Sides) -> Int[np.ndarray, "images k"]:
        """For each image to forget, the preserve images most like it over all paths."""
        means = sides.image_means()
        outputs = [path.output(means.both(path.last_tap)) for path in self.paths]
        return most_similar(outputs, sides.is_forget, NEIGHBOURS)

    def _blank_taps(self, sides: Sides) -> dict[str, Float[np.ndarray, "n _"]]:
        """Taps of a blank image of the first image's size."""
        size = read_image(sides.forget.files[0].path).size
        return self.extractor.extract_image(self.preprocessor.blank(size))

    def splits(self, sides: Sides, adapter: LoraAdapter) -> dict[str, Split]:
        """Images' mean embeddings of every path, before and after the edit; from image means."""
        labels = np.array([file.label for file in sides.files])
        splits = {}
        for path in self.paths:
            before = path.output(sides.both(path.last_tap))
            changes = [path.change(side, adapter) for side in (sides.forget, sides.preserve)]
            after = before + np.concatenate(changes)
            splits[path.name] = Split(before, after, labels, sides.is_forget)
        return splits

    def evaluate(
        self, train: Sides, test: Sides, adapter: LoraAdapter, fitted: Fitted | None = None
    ) -> dict[str, Any]:
        """The readers' part of metrics.json."""
        train_splits, test_splits = self.splits(train, adapter), self.splits(test, adapter)
        paths, neighbours = read_all(train_splits, test_splits, fitted)
        classes = len(np.unique(next(iter(train_splits.values())).labels))
        # What a guess among the classes would score.
        chance = {
            "forget": len(np.unique(train.forget.labels)) / classes,
            "preserve": 1 / classes,
            "neighbours": 1 / classes,
        }
        read = {"paths": paths, "neighbours": neighbours, "chance": chance}
        return headline(paths, chance["forget"]) | read
