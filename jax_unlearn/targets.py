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

TargetKind = Literal["random", "matched", "mean", "blank", "shift", "twin"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
TWIN_NEIGHBOURS = 10

Rows = Float[np.ndarray, "n e"]
Index = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Outputs:
    """One path's original outputs [n, E]; `image` says which image each row belongs to."""

    forget: Rows
    forget_image: Index
    preserve: Rows
    preserve_image: Index
    blank: Float[np.ndarray, " e"]


def neutral_target(kind: TargetKind, outputs: Outputs, key: Array) -> Rows:
    """T [n_f, E] for the forget rows.

    random: one unit vector an image, the published scheme. matched: the same directions, with the
    norm of each row's own output. mean: the mean of the preserve outputs. blank: the mean
    embedding of a blank image. shift: the row's own output plus (preserve mean − forget mean),
    which removes only what tells the two sets apart on average. twin: the row's own output plus
    (mean of its 10 nearest preserve images, found after the shift, − its own image's mean).
    """
    y = outputs.forget
    if kind in ("random", "matched"):
        scale = 1.0 if kind == "random" else np.linalg.norm(y, axis=1, keepdims=True)
        return (_unit_vectors(key, outputs) * scale).astype(np.float32)
    if kind == "mean":
        return np.broadcast_to(_mean(outputs.preserve), y.shape)
    if kind == "blank":
        return np.broadcast_to(outputs.blank, y.shape)
    move = _mean(outputs.preserve) - _mean(y)
    return y + move if kind == "shift" else _twin(outputs, move)


def _mean(rows: Rows) -> Float[np.ndarray, " e"]:
    return rows.mean(axis=0, dtype=np.float64).astype(np.float32)


def _unit_vectors(key: Array, outputs: Outputs) -> Rows:
    count, width = int(outputs.forget_image.max()) + 1, outputs.forget.shape[1]
    directions = np.asarray(jax.random.normal(key, (count, width)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions[outputs.forget_image]


def _twin(outputs: Outputs, move: Float[np.ndarray, " e"]) -> Rows:
    own = image_means(outputs.forget, outputs.forget_image)
    others = image_means(outputs.preserve, outputs.preserve_image)
    count = min(TWIN_NEIGHBOURS, len(others))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(others)
    nearest = search.kneighbors(own + move, return_distance=False)
    twins = others[nearest].mean(axis=1) - own
    return outputs.forget + twins[outputs.forget_image]
