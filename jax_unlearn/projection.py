"""A path that is one Linear: CLIP's projections, which go by their own names."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jax_unlearn.lora import LoraAdapter
from jax_unlearn.objective import Part, linear_problem
from jax_unlearn.rows import Features


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

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original embeddings, not normalised."""
        return x @ self.weight.T + self.bias

    def change(self, samples: Features, adapter: LoraAdapter) -> Float[np.ndarray, "n e"]:
        """How the adapter changes each embedding."""
        x = samples.taps[self.name].x
        if self.name not in adapter.pairs:
            return np.zeros((len(x), len(self.weight)), np.float32)
        pair = adapter.pairs[self.name]
        return adapter.scale * (x @ np.asarray(pair.a).T) @ np.asarray(pair.b).T

    def problem(
        self,
        adapted: Collection[str],
        forget: Features,
        target: Float[np.ndarray, "n_f e"],
        preserve: Features,
    ) -> tuple[str, Part]:
        """The part of this path and its key."""
        x_f, x_p = (side.taps[self.name].x for side in (forget, preserve))
        return self.name, linear_problem(self.weight, self.bias, x_f, target, x_p)
