"""Rows in place of images' means: with the same sums of each class, and none of a single image."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from jax_unlearn.runs.ledger.store import StoredImages
from jax_unlearn.runtime.errors import UserError

# Two rows are determined by their mean and covariance, up to their order.
FEWEST = 3


def without_image_means(images: StoredImages) -> StoredImages:
    """Mix the rows of the images of each class, apart for training and evaluation.

    Each row becomes the mean plus a combination of all deviations from it, by a random orthogonal
    matrix that keeps the mean; so each class has the same mean and Gram matrix as before. The
    matrix is drawn from the system's randomness and not kept.

    Raises:
        UserError: a class has too few images.
    """
    rows = {name: x.copy() for name, x in images.rows.items()}
    random = np.random.default_rng()
    for own in parts(images):
        mixing = keeping_the_mean(len(own), random)
        for x in rows.values():
            x[own] = mixing @ x[own].astype(np.float64)
    return replace(images, rows=rows)


def parts(images: StoredImages) -> Sequence[np.ndarray]:
    """The places of each class's images to train with, and of those held out.

    Raises:
        UserError: there are fewer than FEWEST.
    """
    found, labels = [], np.array(images.labels)
    for label in np.unique(labels):
        for held_out, what in ((False, "to train with"), (True, "held out")):
            own = np.flatnonzero((labels == label) & (images.held_out == held_out))
            if 0 < len(own) < FEWEST:
                raise UserError(
                    f"--no-image-means: {label} has {len(own)} images {what}, and needs {FEWEST}, "
                    "so that no row is that of one image; give more, or leave it out"
                )
            found.append(own)
    return [own for own in found if len(own)]


def keeping_the_mean(size: int, random: np.random.Generator) -> Float64[np.ndarray, "n n"]:
    """A random orthogonal matrix whose rows and columns have the sum 1."""
    ones = np.full((size, 1), size**-0.5)
    bases = [
        np.linalg.qr(np.concatenate([ones, random.normal(size=(size, size - 1))], axis=1))[0][:, 1:]
        for _ in range(2)
    ]
    return ones @ ones.T + bases[0] @ bases[1].T
