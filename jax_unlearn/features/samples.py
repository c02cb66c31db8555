"""Features of samples: rows at the taps, and the sample that each row belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.statistics import Statistics
from jax_unlearn.models.qwen3_vision.config import LINEARS


@dataclass(frozen=True)
class TapRows:
    """Rows at the input of a Linear: one per token, or one per image (the mean of its tokens).

    x: [rows, D_in] float32; image: [rows] index of the image of each row, ascending without gaps.
    """

    x: Float[np.ndarray, "rows d_in"]
    image: Int[np.ndarray, " rows"]

    @classmethod
    def of(cls, images: Sequence[Float[np.ndarray, "_ d_in"]]) -> "TapRows":
        """Concatenate the rows of each image."""
        counts = [len(rows) for rows in images]
        return cls(np.concatenate(images), np.repeat(np.arange(len(images)), counts))

    def image_means(self) -> "TapRows":
        if len(self.x) == len(self.image) == self.image.max(initial=-1) + 1:
            # One row for each image already.
            return self
        means = image_means(self.x, self.image)
        return TapRows(means, np.arange(len(means)))


def ends_merger(linear: str) -> bool:
    """Whether a Linear is its Merger's last; its mean output is then that of the mean row."""
    return linear.endswith(f".{LINEARS[-1]}")


Sample = ImageFile | Prompt


@dataclass(frozen=True)
class SampleFeatures:
    """Rows and statistics of some samples, by the names of the Linears at whose input they are.

    Attributes:
        files: the samples.
        taps: the rows. A Merger's last Linear has one per image, unless its linear_fc1 is adapted
            and the rows of the loss are tokens; a Linear before the GELU always has all tokens.
        statistics: statistics of the rows of the loss, for each projector whose change is linear;
            with `select="held_out"` a pair, of the images to fit and of those to choose by.
        choosing: which samples are to choose by; None without `select="held_out"`.
        tokens: a few tokens of some samples at the Mergers' last Linears (`token_sample`); `image`
            is the index of the sample.
    """

    files: tuple[Sample, ...]
    taps: dict[str, TapRows]
    statistics: dict[str, tuple[Statistics, ...]] = field(default_factory=dict)
    choosing: Bool[np.ndarray, " n"] | None = None
    tokens: dict[str, TapRows] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        return np.array([file.label for file in self.files])

    def image_means(self) -> "SampleFeatures":
        """Replace tokens by their mean for each image, at the taps where `ends_merger` holds."""
        taps = {
            name: tap.image_means() if ends_merger(name) else tap for name, tap in self.taps.items()
        }
        return replace(self, taps=taps)

    def chosen(self, index: Int[np.ndarray, " n"]) -> "SampleFeatures":
        """The features of some samples, which have one row each, in this order; no statistics."""
        taps = {
            name: TapRows(tap.x[index], np.arange(len(index))) for name, tap in self.taps.items()
        }
        tokens = {}
        for name, sampled in self.tokens.items():
            rows = [np.flatnonzero(sampled.image == i) for i in index]
            counts = [len(own) for own in rows]
            places = np.concatenate([np.zeros(0, int), *rows])
            tokens[name] = TapRows(sampled.x[places], np.repeat(np.arange(len(index)), counts))
        files = tuple(self.files[i] for i in index)
        return SampleFeatures(files, taps, tokens=tokens)

    def choosing_rows(self, name: str) -> Bool[np.ndarray, " rows"]:
        """Which rows of a tap belong to images to choose by."""
        assert self.choosing is not None
        return self.choosing[self.taps[name].image]

    def mean(self, name: str) -> Float[np.ndarray, " d_in"]:
        """Mean over all rows of the loss at one tap."""
        if name in self.statistics:
            parts = self.statistics[name]
            total = sum(part.total for part in parts) / sum(part.count for part in parts)
            return np.asarray(total, np.float32)
        return self.taps[name].x.mean(axis=0, dtype=np.float64).astype(np.float32)


def images(features: SampleFeatures) -> list[ImageFile]:
    """The samples of `features` that are images."""
    return [sample for sample in features.files if isinstance(sample, ImageFile)]


def image_means(
    x: Float[np.ndarray, "rows d"], image: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "n d"]:
    """Mean of each image's rows; `image` ascends from 0 without gaps."""
    starts = np.searchsorted(image, np.arange(image[-1] + 1))
    sums = np.add.reduceat(x, starts, axis=0, dtype=np.float64)
    return (sums / np.bincount(image)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Sides:
    """Features of the samples to forget and to preserve."""

    forget: SampleFeatures
    preserve: SampleFeatures

    def image_means(self) -> "Sides":
        return Sides(self.forget.image_means(), self.preserve.image_means())

    @property
    def files(self) -> tuple[Sample, ...]:
        """All samples, those to forget first."""
        return self.forget.files + self.preserve.files

    @property
    def is_forget(self) -> Bool[np.ndarray, " n"]:
        """Which of `files` are to forget."""
        return np.arange(len(self.files)) < len(self.forget.files)

    @property
    def labels(self) -> np.ndarray:
        """Classes of `files`."""
        return np.concatenate([self.forget.labels, self.preserve.labels])

    def both(self, name: str) -> Float[np.ndarray, "rows d_in"]:
        """Rows at one tap, forget first."""
        return np.concatenate([self.forget.taps[name].x, self.preserve.taps[name].x])
