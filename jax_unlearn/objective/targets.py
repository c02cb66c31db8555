"""Neutral targets: where the forget rows are sent.

Every target is made from one path's own outputs, the original Linear's, and says the same of all
rows of an image but for their own output and its norm. So it can be had from statistics of the rows
(`linear.linear_part`) as well as for the rows themselves (`Target.rows`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

TargetKind = Literal["random", "matched", "mean", "blank", "shift", "near", "twin"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
NEIGHBOURS = 10
# Targets that the seed decides: for CLIP's names also the one that noise is added to.
DRAWN: tuple[TargetKind, ...] = ("random", "matched")
DRAWN_FOR_NAMES: tuple[TargetKind, ...] = (*DRAWN, "blank")
# Targets that move every row by one vector: the best change has rank 1, whatever is allowed.
ONE_STEP: tuple[TargetKind, ...] = ("shift", "near")

Images = Float[np.ndarray, "images e"]


@dataclass(frozen=True)
class Outputs:
    """One path's original outputs.

    forget: [images, E] mean embedding of each image to forget; preserve: [others, E] of images to
    keep. forget_mean, preserve_mean: [E] over all rows. blank: [E] of a blank image, for the target
    of that name only. similar: [images, 10] which preserve images are most like each
    (`similarity.most_similar`, over all paths), for `near` only.
    """

    forget: Images
    preserve: Float[np.ndarray, "others e"]
    forget_mean: Float[np.ndarray, " e"]
    preserve_mean: Float[np.ndarray, " e"]
    blank: Float[np.ndarray, " e"] | None
    similar: Int[np.ndarray, "images k"] | None


@dataclass(frozen=True)
class Target:
    """T of a row with output y of image i: constant[i] + ‖y‖ scaled[i], and y itself if `own`.

    constant, scaled: [images, E] float32.
    """

    constant: Images
    own: bool = False
    scaled: Images | None = None

    def rows(
        self, y: Float[np.ndarray, "n e"], image: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n e"]:
        """T [n, E] of rows with outputs y; image: which image each row is of."""
        target = self.constant[image]
        if self.scaled is not None:
            target = target + np.linalg.norm(y, axis=1, keepdims=True) * self.scaled[image]
        return (y + target if self.own else target).astype(np.float32)


def neutral_target(
    kind: TargetKind, outputs: Outputs, key: Array, near_step: float = 1.5
) -> Target:
    """Where the forget rows go.

    random: one unit vector an image, the published scheme. matched: the same directions, with the
    norm of each row's own output. mean: the mean of the preserve outputs. blank: the mean
    embedding of a blank image. shift: the row's own output plus (preserve mean − forget mean),
    which removes only what tells the two sets apart on average. near: the row's own output plus
    `near_step` times the mean step from a forget image to the preserve images most like it, which
    removes only what tells the concept from its neighbours. twin: the row's own output plus (mean
    of its 10 nearest preserve images, found after the shift, − its own image's mean).
    """
    own, others = outputs.forget, outputs.preserve
    if kind == "random":
        return Target(_unit_vectors(key, own))
    if kind == "matched":
        return Target(np.zeros_like(own), scaled=_unit_vectors(key, own))
    if kind == "mean":
        return Target(np.broadcast_to(outputs.preserve_mean, own.shape))
    if kind == "blank":
        assert outputs.blank is not None
        return Target(np.broadcast_to(outputs.blank, own.shape))
    if kind == "near":
        assert outputs.similar is not None
        step = (others[outputs.similar].mean(axis=1) - own).mean(axis=0, dtype=np.float64)
        step = (near_step * step).astype(np.float32)
        return Target(np.broadcast_to(step, own.shape), own=True)
    shift = outputs.preserve_mean - outputs.forget_mean
    if kind == "shift":
        return Target(np.broadcast_to(shift, own.shape), own=True)
    # Not at the top: it costs a second, and `train` is imported by who never asks for a target.
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(others)), algorithm="brute")
    nearest = search.fit(others).kneighbors(own + shift, return_distance=False)
    return Target(others[nearest].mean(axis=1) - own, own=True)


def _unit_vectors(key: Array, own: Images) -> Images:
    directions = np.asarray(jax.random.normal(key, own.shape))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
