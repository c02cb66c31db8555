"""A path that is one Linear: CLIP's projections, which go by their own names."""

from collections.abc import Collection
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.models.lora import LoraAdapter, lora_delta
from jax_unlearn.objective.linear import linear_part
from jax_unlearn.objective.loss import ProjectorProblem
from jax_unlearn.objective.targets import Target


@dataclass(frozen=True)
class ProjectionPath:
    """The frozen arrays of a projection: weight [E, D_in] and bias [E]."""

    name: str
    weight: Float[np.ndarray, "e d_in"]
    bias: Float[np.ndarray, " e"]

    @property
    def last_tap(self) -> str:
        """The projection's input is the only tap."""
        return self.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.name: self.weight.shape}

    @property
    def last_linear(self) -> tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]:
        return self.weight, self.bias

    @property
    def is_linear(self) -> bool:
        return True

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original embeddings, not normalised."""
        return x @ self.weight.T + self.bias

    def change(self, samples: SampleFeatures, adapter: LoraAdapter) -> Float[np.ndarray, "n e"]:
        """How the adapter changes each embedding."""
        x = samples.taps[self.name].x
        if self.name not in adapter.pairs:
            return np.zeros((len(x), len(self.weight)), np.float32)
        return np.asarray(lora_delta(jnp.asarray(x), adapter.pairs[self.name], adapter.scale))

    def problem(
        self,
        adapted: Collection[str],
        forget: SampleFeatures,
        target: Target,
        preserve: SampleFeatures,
    ) -> tuple[str, tuple[ProjectorProblem, ...]]:
        """The key of this path and its parts."""
        sides = (side.statistics[self.name] for side in (forget, preserve))
        parts = (
            linear_part(self.weight, self.bias, f, target, p) for f, p in zip(*sides, strict=True)
        )
        return self.name, tuple(parts)
