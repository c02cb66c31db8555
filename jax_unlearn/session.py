"""A checkpoint's tower and a run's images: features, the training problem, the evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

import porting
from jax_unlearn.config import RunConfig
from jax_unlearn.data.folder import ImageFile, ImageReader, read_image
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.dataset import Dataset, collect
from jax_unlearn.evaluate.readers import Split, headline, read_all
from jax_unlearn.extract import Extractor, Granularity
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.objective import LinearProblem, linear_problem
from jax_unlearn.rows import Features
from jax_unlearn.statistics import compress
from jax_unlearn.targets import Outputs, neutral_target

LINEAR = "linear_fc2"
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """Features of the forget and the preserve images."""

    forget: Features
    preserve: Features

    def image_means(self) -> "Sides":
        return Sides(self.forget.image_means(), self.preserve.image_means())


class Session:
    """A checkpoint's tower and a run's images, ready to extract."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.dataset: Dataset = collect(config)
        self.tower = porting.load_vision_tower(config.checkpoint, config.dtype)
        shape = self.tower.config
        self.preprocessor = load_preprocessor(
            config.checkpoint, shape.patch_size, shape.spatial_merge_size
        )
        # Every path is read in evaluation, whichever are adapted.
        self.names = [f"{merger}.{LINEAR}" for merger in shape.mergers]
        self.extractor = Extractor(self.tower, self.preprocessor, self.names)
        self.reader = ImageReader(config.strict)
        self.linears = {name: self.tower.linear(name) for name in self.names}

    @property
    def adapted(self) -> list[str]:
        """Names of the Linears that the run changes."""
        return self.names if self.config.targets == "all" else self.names[:1]

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

    def hold_out(self, sides: Sides) -> tuple[Sides, Sides | None]:
        """(rows to fit, rows to choose the adapter by); the latter only where the run asks."""
        if self.config.select != "held_out":
            return sides, None
        forget = sides.forget.hold_out(self.config.seed)
        preserve = sides.preserve.hold_out(self.config.seed)
        return Sides(forget[0], preserve[0]), Sides(forget[1], preserve[1])

    def problem(self, sides: Sides) -> dict[str, LinearProblem]:
        """The training problem of every adapted Linear, on as few rows as carry the same loss."""
        size = read_image(sides.forget.files[0].path).size
        blank = self.extractor.extract_image(self.preprocessor.blank(size))
        keys = jax.random.split(jax.random.key(self.config.seed + 1), len(self.names))
        problem = {
            name: self._linear_problem(name, sides, blank[name], key)
            for name, key in zip(self.names, keys, strict=True)
            if name in self.adapted
        }
        return compress(problem)

    def _linear_problem(
        self, name: str, sides: Sides, blank: Float[np.ndarray, "n d_in"], key: jax.Array
    ) -> LinearProblem:
        forget, preserve = sides.forget.taps[name], sides.preserve.taps[name]
        outputs = Outputs(
            self.output(name, forget),
            sides.forget.image,
            self.output(name, preserve),
            sides.preserve.image,
            self.output(name, blank).mean(axis=0),
        )
        target = neutral_target(self.config.target, outputs, key)
        weight, bias = self.linears[name]
        return linear_problem(weight, bias, forget, target, preserve)

    def output(
        self, name: str, x: Float[np.ndarray, "n d_in"], adapter: LoraAdapter | None = None
    ) -> Float[np.ndarray, "n e"]:
        """The Linear's output on rows of its tap, with the adapter's change if it has one."""
        weight, bias = self.linears[name]
        y = x @ weight.T + bias
        if adapter and name in adapter.pairs:
            pair = adapter.pairs[name]
            y = y + adapter.scale * (x @ np.asarray(pair.a).T) @ np.asarray(pair.b).T
        return y

    def splits(self, sides: Sides, adapter: LoraAdapter) -> dict[str, Split]:
        """Images' mean embeddings of every path, before and after the edit."""
        labels = np.concatenate([sides.forget.labels, sides.preserve.labels])
        is_forget = np.arange(len(labels)) < len(sides.forget.labels)
        splits = {}
        for name in self.names:
            x = np.concatenate([sides.forget.taps[name], sides.preserve.taps[name]])
            before, after = self.output(name, x), self.output(name, x, adapter)
            splits[name.removesuffix(f".{LINEAR}")] = Split(before, after, labels, is_forget)
        return splits

    def evaluate(self, train: Sides, test: Sides, adapter: LoraAdapter) -> Metrics:
        """The readers' part of metrics.json."""
        train_splits, test_splits = self.splits(train, adapter), self.splits(test, adapter)
        paths, neighbours = read_all(train_splits, test_splits)
        classes = len(np.unique(next(iter(train_splits.values())).labels))
        chance = len(np.unique(test.forget.labels)) / classes
        return headline(paths, chance) | {"paths": paths, "neighbours": neighbours}
