"""Rows of features, the images that they belong to, and which images are alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.neighbors import NearestNeighbors

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

    def held_out_rows(self, seed: int) -> Bool[np.ndarray, " rows"]:
        """Rows of a seeded fifth of each class's images."""
        held = set(split_held_out(self.files, seed)[1])
        return np.array([file in held for file in self.files])[self.image]


def image_means(
    x: Float[np.ndarray, "rows d"], image: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "n d"]:
    """Mean of each image's rows; `image` counts 0, 0, …, 1, … without a gap."""
    starts = np.searchsorted(image, np.arange(image[-1] + 1))
    sums = np.add.reduceat(x, starts, axis=0, dtype=np.float64)
    return (sums / np.bincount(image)[:, None]).astype(np.float32)


def directions(paths: Sequence[Float[np.ndarray, "n _"]]) -> Float[np.ndarray, "n d"]:
    """One unit vector an image from its mean embeddings on several paths.

    Each path is centred and divided by its deviation, so that all count alike; distances between
    the unit vectors then order images by cosine. Uncentred, a large common mean hides the classes.
    """
    centred = [x - x.mean(axis=0) for x in paths]
    joined = np.concatenate([x / x.std() for x in centred], axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def most_similar(
    paths: Sequence[Float[np.ndarray, "n _"]], is_forget: Bool[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "images k"]:
    """For each forget image, the preserve images most like it over all paths, nearest first.

    Args:
        paths: mean embeddings of all images on each path.
        is_forget: which of the images are to be forgotten; the indices returned count the others.
        count: how many, at most as many as there are.
    """
    unit = directions(paths)
    search = NearestNeighbors(n_neighbors=min(count, int((~is_forget).sum())), algorithm="brute")
    nearest = search.fit(unit[~is_forget]).kneighbors(unit[is_forget], return_distance=False)
    return np.asarray(nearest)
