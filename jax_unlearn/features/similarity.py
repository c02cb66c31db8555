"""Similarity of images and of names, by the cosine of their embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


def directions(embeddings: Sequence[Float[np.ndarray, "n _"]]) -> Float[np.ndarray, "n d"]:
    """One unit vector per image, from its mean embeddings by several projectors.

    The embeddings of each projector are centred and divided by their standard deviation, so that
    all projectors have equal weight; distances between the unit vectors then order images by
    cosine. Without centring, a large common mean would hide the classes.
    """
    centred = [x - x.mean(axis=0) for x in embeddings]
    combined = np.concatenate([x / x.std() for x in centred], axis=1)
    return combined / np.linalg.norm(combined, axis=1, keepdims=True)


def most_similar(
    embeddings: Sequence[Float[np.ndarray, "n _"]], is_forget: Bool[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "images k"]:
    """For each forget image, the most similar preserve images over all projectors, nearest first.

    Args:
        embeddings: mean embeddings of all images, by each projector.
        is_forget: which of the images are to forget.
        count: number of neighbours k; reduced to the number of preserve images.

    Returns:
        Indices among the preserve images.
    """
    # Here, since it doubles the time of starting.
    from sklearn.neighbors import NearestNeighbors

    unit = directions(embeddings)
    search = NearestNeighbors(n_neighbors=min(count, int((~is_forget).sum())), algorithm="brute")
    nearest = search.fit(unit[~is_forget]).kneighbors(unit[is_forget], return_distance=False)
    return np.asarray(nearest)


Embeddings = Float[np.ndarray, "n e"]


@dataclass(frozen=True)
class Named:
    """Embeddings of names or images, with the class of each."""

    embeddings: Embeddings
    labels: np.ndarray


def unit(x: Embeddings) -> Embeddings:
    """Rows scaled to unit norm; a row of zeros stays zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(norm, np.finfo(np.float32).tiny)


def classify(images: Embeddings, names: Named) -> np.ndarray:
    """The class of the name most similar to each image (zero-shot classification)."""
    nearest = (unit(images) @ unit(names.embeddings).T).argmax(axis=1)
    return np.asarray(names.labels[nearest])
