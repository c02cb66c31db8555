"""The objective in float64, computed from the rows, to compare the adapters of all variants."""

import numpy as np
from jaxtyping import Float

from benchmarks.harness import PUBLISHED
from jax_unlearn.models.lora import LoraAdapter

BLOCK = 4096
WEIGHTS = PUBLISHED.loss_weights()


class Exact:
    """The loss with the published λ's and the reduction `sum`, of an adapter.

    Args:
        arrays: weight, bias, forget, target and preserve; see `objective.linear_problem`.
    """

    def __init__(self, arrays: tuple[np.ndarray, ...]) -> None:
        weight, bias, self.forget, target, self.preserve = arrays
        self.residual = target - product(self.forget, weight) - bias

    def __call__(self, adapter: LoraAdapter) -> float:
        """The loss of an adapter with one pair."""
        (pair,) = adapter.pairs.values()
        a, b = (np.asarray(x, np.float64) for x in (pair.a, pair.b))
        missed = self.residual - adapter.scale * product(self.forget, a) @ b.T
        moved = adapter.scale * size(product(self.preserve, a), b)
        terms = WEIGHTS.forget * np.linalg.norm(missed), WEIGHTS.preserve * moved
        return float(sum(terms) + WEIGHTS.weight * size(a.T, b))


def product(
    x: Float[np.ndarray, "n d_in"], weight: Float[np.ndarray, "e d_in"]
) -> Float[np.ndarray, "n e"]:
    """X Wᵀ, a block of rows at a time."""
    right = weight.T.astype(np.float64)
    return np.concatenate([x[i : i + BLOCK] @ right for i in range(0, len(x), BLOCK)])


def size(h: Float[np.ndarray, "n r"], b: Float[np.ndarray, "e r"]) -> float:
    """‖H Bᵀ‖, from ‖H Bᵀ‖² = ⟨HᵀH, BᵀB⟩."""
    return float(np.sum((h.T @ h) * (b.T @ b)) ** 0.5)
