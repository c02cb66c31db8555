"""Extracted: everything that a run makes of its samples before anything is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.models.clip.model import LINEARS
from jax_unlearn.models.frozen_linear import FrozenLinear, projector_name

SourceKind = Literal["qwen_images", "clip_images", "clip_names"]
# Where a source's Linears are the only ones to adapt, their names say which source it was.
KINDS: dict[str, SourceKind] = dict(zip(LINEARS, ("clip_names", "clip_images"), strict=True))


@dataclass(frozen=True)
class Extracted:
    """The frozen Linears and the features of a run's samples: what is fitted and judged.

    Attributes:
        linears: of the projectors that may be adapted, in the tower's order.
        judged_linears: of CLIP's other side, by which the result is judged.
        train: features of the samples to fit to, with the statistics of their rows.
        test: features of the held-out samples, one row each.
        empty: each projector's embedding [E] of a sample that shows or says nothing: a blank image,
            or "".
        judged: features besides the samples' that the result is judged by, by name: CLIP's images
            (`shown.0`, …), names of other data sets (`others.0`, …), the classes' names (`names`).
        counts: number of samples of each group, with the skipped ones and a fingerprint.
        throughput: of the passes of the tower; empty where no tower was run.
    """

    linears: tuple[FrozenLinear, ...]
    train: Sides
    test: Sides
    empty: Mapping[str, Float[np.ndarray, " e"]]
    counts: Mapping[str, Any]
    judged_linears: tuple[FrozenLinear, ...] = ()
    judged: Mapping[str, SampleFeatures] = field(default_factory=dict)
    throughput: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def kind(self) -> SourceKind:
        return kind_of(self.linears[0].name)

    @property
    def model_type(self) -> str:
        """The family of a checkpoint without config.json, which only OpenCLIP's have not."""
        return "qwen3_vl" if self.kind == "qwen_images" else "clip"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each Linear, by its full name."""
        return {linear.name: linear.shape for linear in self.linears}


def kind_of(linear: str) -> SourceKind:
    """What the samples are, by the name of a Linear that may be adapted."""
    return KINDS.get(projector_name(linear), "qwen_images")
