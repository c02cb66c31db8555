"""Neutral targets: the embeddings that the forget rows should have after the edit.

A target is computed from the original outputs of one projector. It is the same for all rows of an
image, except for terms in the row's own output and its norm. It can therefore be applied to the
statistics of rows (`linear.linear_part`) as well as to the rows (`Target.rows`).
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

NeutralKind = Literal["random", "matched", "mean", "blank", "shift", "near", "twin"]
# stand_in is no target of single rows; it has a solver of its own (`solvers.stand_in`).
TargetKind = Literal[NeutralKind, "stand_in"]
STAND_IN: Literal["stand_in"] = "stand_in"
TARGETS: tuple[NeutralKind, ...] = get_args(NeutralKind)
NEIGHBOURS = 10
# Targets that depend on the seed; for CLIP's names also `blank`, which has noise added.
DRAWN: tuple[TargetKind, ...] = ("random", "matched")
DRAWN_FOR_NAMES: tuple[TargetKind, ...] = (*DRAWN, "blank")
# Targets that shift every row by the same vector; the best change then has rank 1.
ONE_STEP: tuple[TargetKind, ...] = ("shift", "near")

Images = Float[np.ndarray, "images e"]


@dataclass(frozen=True)
class Outputs:
    """The original outputs of one projector.

    Attributes:
        forget: [images, E] mean embedding of each forget image.
        preserve: [others, E] mean embedding of preserve images.
        forget_mean: [E] mean over all forget rows.
        preserve_mean: [E] mean over all preserve rows.
        blank: [E] embedding of a blank image; needed for `blank` only.
        similar: [images, 10] indices of the preserve images most similar to each forget image
            (`similarity.most_similar`, over all projectors); needed for `near` only.
    """

    forget: Images
    preserve: Float[np.ndarray, "others e"]
    forget_mean: Float[np.ndarray, " e"]
    preserve_mean: Float[np.ndarray, " e"]
    blank: Float[np.ndarray, " e"] | None
    similar: Int[np.ndarray, "images k"] | None

    def of(self, own: Bool[np.ndarray, " images"]) -> "Outputs":
        """Those of some of the forget images, whose rows are their means."""
        forget = self.forget[own]
        mean = forget.mean(axis=0, dtype=np.float64).astype(np.float32)
        similar = None if self.similar is None else self.similar[own]
        return replace(self, forget=forget, forget_mean=mean, similar=similar)


@dataclass(frozen=True)
class Target:
    """The target T of a row of image i with output y: constant[i] + ‖y‖ scaled[i], plus y if `own`.

    constant, scaled: [images, E] float32.
    """

    constant: Images
    own: bool = False
    scaled: Images | None = None

    def rows(
        self, y: Float[np.ndarray, "n e"], image: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n e"]:
        """T [n, E] of rows with outputs y [n, E]; image: [n] index of each row's image."""
        target = self.constant[image]
        if self.scaled is not None:
            target = target + np.linalg.norm(y, axis=1, keepdims=True) * self.scaled[image]
        return (y + target if self.own else target).astype(np.float32)


def neutral_target(
    kind: NeutralKind, outputs: Outputs, key: Array, near_step: float = 1.5
) -> Target:
    """The target of the forget rows.

    Args:
        kind: which target:

            * random: one random unit vector per image (the published scheme);
            * matched: the same directions, with the norm of each row's own output;
            * mean: the mean of the preserve outputs;
            * blank: the embedding of a blank image;
            * shift: the row's own output plus (preserve mean − forget mean), which removes only
              the average difference between the two sets;
            * near: the row's own output plus `near_step` times the mean step from a forget image
              to the preserve images most similar to it, which removes only what distinguishes the
              concept from its neighbours;
            * twin: the row's own output plus (mean of its 10 nearest preserve images, found after
              the shift, − mean of its own image).
        outputs: the projector's original outputs.
        key: PRNG key of random and matched.
        near_step: length of the step of near.
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
    # Imported here because it takes a second, and programs that only call `train` do not need it.
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(others)), algorithm="brute")
    nearest = search.fit(others).kneighbors(own + shift, return_distance=False)
    return Target(others[nearest].mean(axis=1) - own, own=True)


def targets_of_groups(
    kind: NeutralKind,
    outputs: Outputs,
    key: Array,
    near_step: float,
    groups: Int[np.ndarray, " images"],
) -> Target:
    """The target of forget images in groups, each of which has the target it has alone.

    Args:
        kind: see `neutral_target`.
        outputs: the projector's original outputs, of all groups; a row of the loss is an image.
        key: see `neutral_target`.
        near_step: see `neutral_target`.
        groups: the group of each forget image.
    """
    constant, scaled = np.zeros_like(outputs.forget), None
    for group in np.unique(groups):
        own = groups == group
        target = neutral_target(kind, outputs.of(own), key, near_step)
        constant[own] = target.constant
        if target.scaled is not None:
            scaled = np.zeros_like(constant) if scaled is None else scaled
            scaled[own] = target.scaled
    return Target(constant, target.own, scaled)


def _unit_vectors(key: Array, own: Images) -> Images:
    directions = np.asarray(jax.random.normal(key, own.shape, jnp.float32))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
