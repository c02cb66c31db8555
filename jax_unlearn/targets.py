"""Neutral targets: where the forget rows are sent.

Every target is a function of one path's own outputs: Y_f and Y_p, the original Linear's outputs on
the forget and the preserve rows.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from sklearn.neighbors import NearestNeighbors

from jax_unlearn.rows import image_means

TargetKind = Literal["random", "matched", "mean", "blank", "shift", "near", "twin"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
NEIGHBOURS = 10

Rows = Float[np.ndarray, "n e"]


@dataclass(frozen=True)
class Outputs:
    """One path's original outputs [n, E]; `*_image` says which image each row belongs to.

    blank: the mean embedding of a blank image, for the target of that name only. similar: [images
    to forget, 10] which preserve images are most like each (`rows.most_similar`, over all paths),
    for `near` only.
    """

    forget: Float[np.ndarray, "n_f e"]
    forget_image: Int[np.ndarray, " n_f"]
    preserve: Float[np.ndarray, "n_p e"]
    preserve_image: Int[np.ndarray, " n_p"]
    blank: Float[np.ndarray, " e"] | None
    similar: Int[np.ndarray, "images k"] | None


def neutral_target(kind: TargetKind, outputs: Outputs, key: Array, near_step: float = 1.5) -> Rows:
    """T [n_f, E] for the forget rows.

    random: one unit vector an image, the published scheme. matched: the same directions, with the
    norm of each row's own output. mean: the mean of the preserve outputs. blank: the mean
    embedding of a blank image. shift: the row's own output plus (preserve mean − forget mean),
    which removes only what tells the two sets apart on average. near: the row's own output plus
    `near_step` times the mean step from a forget image to the preserve images most like it, which
    removes only what tells the concept from its neighbours. twin: the row's own output plus (mean
    of its 10 nearest preserve images, found after the shift, − its own image's mean).
    """
    y = outputs.forget
    if kind in ("random", "matched"):
        scale = 1.0 if kind == "random" else np.linalg.norm(y, axis=1, keepdims=True)
        return (_unit_vectors(key, outputs) * scale).astype(np.float32)
    if kind == "mean":
        return np.broadcast_to(_mean(outputs.preserve), y.shape)
    if kind == "blank":
        assert outputs.blank is not None
        return np.broadcast_to(outputs.blank, y.shape)
    own = image_means(y, outputs.forget_image)
    others = image_means(outputs.preserve, outputs.preserve_image)
    if kind == "near":
        assert outputs.similar is not None
        step = _mean(others[outputs.similar].mean(axis=1) - own)
        return y + np.float32(near_step) * step
    shift = _mean(outputs.preserve) - _mean(y)
    if kind == "shift":
        return y + shift
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(others)), algorithm="brute")
    nearest = search.fit(others).kneighbors(own + shift, return_distance=False)
    return y + (others[nearest].mean(axis=1) - own)[outputs.forget_image]


def _mean(rows: Rows) -> Float[np.ndarray, " e"]:
    return rows.mean(axis=0, dtype=np.float64).astype(np.float32)


def _unit_vectors(key: Array, outputs: Outputs) -> Rows:
    count, width = int(outputs.forget_image.max()) + 1, outputs.forget.shape[1]
    directions = np.asarray(jax.random.normal(key, (count, width)))
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return directions[outputs.forget_image]
