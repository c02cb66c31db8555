"""Rows of features and the images that they belong to."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_unlearn.data.folder import ImageFile, split_held_out


@dataclass(frozen=True)
class Features:
    """Rows at each tap: one a token, or one an image (the mean of its tokens).

    taps: [n_rows, D_in] float32 of each Linear; image: [n_rows] which of `files` a row belongs to.
    """

    files: tuple[ImageFile, ...]
    taps: dict[str, Float[np.ndarray, "rows d_in"]]
    image: Int[np.ndarray, " rows"]

    @property
    def labels(self) -> np.ndarray:
        return np.array([file.label for file in self.files])

    def image_means(self) -> "Features":
        """One row an image; a Linear's mean output is its output on the mean row."""
        taps = {name: image_means(x, self.image) for name, x in self.taps.items()}
        return Features(self.files, taps, np.arange(len(self.files)))

    def hold_out(self, seed: int) -> "tuple[Features, Features]":
        """(the rest, a seeded fifth of each class)."""
        held = set(split_held_out(self.files, seed)[1])
        is_held = np.array([file in held for file in self.files])
        return self.take(~is_held), self.take(is_held)

    def take(self, keep: Bool[np.ndarray, " n"]) -> "Features":
        """The rows of some of the images."""
        rows = keep[self.image]
        place = np.cumsum(keep) - 1
        files = tuple(file for file, kept in zip(self.files, keep, strict=True) if kept)
        taps = {name: x[rows] for name, x in self.taps.items()}
        return Features(files, taps, place[self.image[rows]])


def image_means(
    x: Float[np.ndarray, "rows d"], image: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "n d"]:
    """Mean of each image's rows; `image` counts 0, 0, …, 1, … without a gap."""
    starts = np.searchsorted(image, np.arange(image[-1] + 1))
    sums = np.add.reduceat(x, starts, axis=0, dtype=np.float64)
    return (sums / np.bincount(image)[:, None]).astype(np.float32)
