"""Extracted: the features of a run's samples and the Linears to adapt, the input of fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jax_unlearn.features.requests import Requests
from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.features.stand_in import Counterpart, StandIn
from jax_unlearn.models.clip.model import LINEARS
from jax_unlearn.models.frozen_linear import FrozenLinear, projector_name
from jax_unlearn.runtime.errors import UserError

SourceKind = Literal["qwen_images", "clip_images", "clip_names"]
# CLIP's two sources each adapt one projection, whose name therefore identifies the source.
KINDS: dict[str, SourceKind] = dict(zip(LINEARS, ("clip_names", "clip_images"), strict=True))


# Of a feature: the sum of the squares of some millions is still a float32.
LARGEST = 1e12


@dataclass(frozen=True)
class Extracted:
    """The frozen Linears and the features of a run's samples, for fitting and evaluation.

    Attributes:
        linears: the Linears of the projectors that may be adapted, in the tower's order.
        judged_linears: the projection of CLIP's other side, needed for evaluation.
        train: features of the training samples, with the statistics of their rows.
        test: features of the held-out samples, one row each.
        empty: each projector's embedding [E] of an empty sample: a blank image, or the text "".
        judged: further features needed for evaluation, by name: CLIP's images (`shown.0`, …), names
            of other data sets (`others.0`, …), the names of the classes (`names`).
        counts: number of samples in each group, the skipped ones, and a fingerprint.
        counterparts: the class to keep that each concept is compared with, or moved onto.
        stand_ins: for each of them, the images that take the concept's place; empty unless the
            target is stand_in.
        requests: the requests of a ledger, if the features are of one.
        throughput: throughput of the passes of the tower; empty if no tower was run.
    """

    linears: tuple[FrozenLinear, ...]
    train: Sides
    test: Sides
    empty: Mapping[str, Float[np.ndarray, " e"]]
    counts: Mapping[str, Any]
    judged_linears: tuple[FrozenLinear, ...] = ()
    judged: Mapping[str, SampleFeatures] = field(default_factory=dict)
    counterparts: tuple[Counterpart, ...] = ()
    stand_ins: tuple[StandIn, ...] = ()
    requests: Requests | None = None
    throughput: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def kind(self) -> SourceKind:
        return kind_of(self.linears[0].name)

    @property
    def model_type(self) -> str:
        """The model family, for checkpoints without config.json (only OpenCLIP's have none)."""
        return "qwen3_vl" if self.kind == "qwen_images" else "clip"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each Linear, by its full name."""
        return {linear.name: linear.shape for linear in self.linears}


def within(x: np.ndarray, largest: float) -> bool:
    """Whether all values are numbers of at most this size."""
    # Without a copy; NaN is the minimum wherever there is one.
    return not x.size or bool(x.min() >= -largest and x.max() <= largest)


def check_features(extracted: Extracted) -> None:
    """Check that the features are numbers to compute with, and those of training samples differ.

    Raises:
        UserError: a Linear's input is not finite, or too large for the sum of its squares to be, or
            is the same for all training samples, or its weight is zero.
    """
    for linear in extracted.linears:
        rows, held_out = (
            [
                side.taps[linear.name].x
                for side in (sides.forget, sides.preserve)
                if linear.name in side.taps
            ]
            for sides in (extracted.train, extracted.test)
        )
        if not all(within(x, LARGEST) for x in (*rows, *held_out)):
            raise UserError(
                f"{linear.name}: its input is not finite, or beyond {LARGEST:.0e}, for some "
                "samples; use --dtype float32, and check the weights and the image processor's "
                "image_std"
            )
        if not linear.weight.any():
            raise UserError(
                f"{linear.name}: its weight is zero, so that its output is the same for all "
                "samples; check the weights of the checkpoint"
            )
        if rows and all((x == rows[0][:1]).all() for x in rows):
            raise UserError(
                f"{linear.name}: its input is the same for all samples, so nothing can be told "
                "apart; give other images, or check the image processor's settings"
            )


def kind_of(linear: str) -> SourceKind:
    """The source kind of a run, from the name of an adaptable Linear."""
    return KINDS.get(projector_name(linear), "qwen_images")
