"""Which images, and which names, are most alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.neighbors import NearestNeighbors


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


Embeddings = Float[np.ndarray, "n e"]


@dataclass(frozen=True)
class Named:
    """Embeddings with the class of each: of names, or of images."""

    embeddings: Embeddings
    labels: np.ndarray


def unit(x: Embeddings) -> Embeddings:
    """Rows of length 1; a row of zeros stays one."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(norm, np.finfo(np.float32).tiny)


def classify(images: Embeddings, names: Named) -> np.ndarray:
    """The name given to each image."""
    nearest = (unit(images) @ unit(names.embeddings).T).argmax(axis=1)
    return np.asarray(names.labels[nearest])
