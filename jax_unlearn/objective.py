"""The three-term loss of one or several adapted Linears, on their inputs.

    forget = λ_f ‖T − (X_f Wᵀ + b + X_f Δᵀ)‖    preserve = λ_p ‖X_p Δᵀ‖    weight = λ_w ‖B A‖

Frobenius norms, neither squared nor averaged (reduction `sum`), or each divided by the root of its
number of rows (`mean`: root mean square per row). Paths are independent and their losses add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jax_unlearn.lora import LoraAdapter, LoraPair, lora_delta

Reduction = Literal["sum", "mean"]
TERMS = ("forget", "preserve", "weight")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossWeights:
    """λ_f, λ_p and λ_w, and how rows are summed. The λ's may be traced, the reduction is static."""

    forget: float | Float[Array, ""] = 1.3
    preserve: float | Float[Array, ""] = 0.4
    weight: float | Float[Array, ""] = 1.0
    reduction: Reduction = field(default="sum", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearProblem:
    """What one adapted Linear must forget and keep.

    forget: X_f [n_f, D_in]; residual: R = T − X_f Wᵀ − b [n_f, E], constant because only Δ is
    trained; preserve: X_p [n_p, D_in]. All float32. forget_rows and preserve_rows: how many rows
    there were before `statistics.compress`, for the mean reduction.
    """

    forget: Float[Array | np.ndarray, "n_f d_in"]
    residual: Float[Array | np.ndarray, "n_f e"]
    preserve: Float[Array | np.ndarray, "n_p d_in"]
    forget_rows: float | Float[Array, ""]
    preserve_rows: float | Float[Array, ""]

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D_in)."""
        return self.residual.shape[1], self.forget.shape[1]

    def take(
        self, forget: Bool[np.ndarray, " n_f"], preserve: Bool[np.ndarray, " n_p"]
    ) -> "LinearProblem":
        """The problem on some of the rows."""
        counts = float(forget.sum()), float(preserve.sum())
        rows = self.forget[forget], self.residual[forget], self.preserve[preserve]
        return LinearProblem(*rows, *counts)


Problem = Mapping[str, LinearProblem]


def linear_problem(
    weight: Float[Array | np.ndarray, "e d_in"],
    bias: Float[Array | np.ndarray, " e"] | float,
    forget: Float[Array | np.ndarray, "n_f d_in"],
    target: Float[Array | np.ndarray, "n_f e"],
    preserve: Float[Array | np.ndarray, "n_p d_in"],
) -> LinearProblem:
    """A problem from the Linear's own arrays, in torch's layout, and the neutral target T."""
    with jax.default_matmul_precision("highest"):
        residual = jnp.asarray(target) - (jnp.asarray(forget) @ jnp.asarray(weight).T + bias)
    rows = float(len(forget)), float(len(preserve))
    return LinearProblem(jnp.asarray(forget), residual, jnp.asarray(preserve), *rows)


def safe_norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm whose gradient at zero is zero, as PyTorch's is; jnp's is NaN there."""
    return safe_sqrt(jnp.sum(x * x))


def safe_sqrt(square: Float[Array, ""]) -> Float[Array, ""]:
    # A Gram sum may round to less than zero. NaN is not below zero, and must come out as NaN.
    zero = square <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def product_norm(pair: LoraPair) -> Float[Array, ""]:
    """‖B A‖ from the r × r Gram matrices, for ‖B A‖² = ⟨BᵀB, A Aᵀ⟩; B A itself is E × D_in."""
    return safe_sqrt(jnp.sum((pair.b.T @ pair.b) * (pair.a @ pair.a.T)))


def linear_terms(
    pair: LoraPair, problem: LinearProblem, scale: float, weights: LossWeights
) -> Float[Array, " terms"]:
    """The weighted terms of one Linear, in the order of TERMS."""
    forget, preserve = jnp.asarray(problem.forget), jnp.asarray(problem.preserve)
    forget_norm = safe_norm(jnp.asarray(problem.residual) - lora_delta(forget, pair, scale))
    preserve_norm = safe_norm(lora_delta(preserve, pair, scale))
    if weights.reduction == "mean":
        forget_norm /= problem.forget_rows**0.5
        preserve_norm /= problem.preserve_rows**0.5
    return jnp.stack(
        [
            weights.forget * forget_norm,
            weights.preserve * preserve_norm,
            weights.weight * product_norm(pair),
        ]
    )


def loss(
    adapter: LoraAdapter, problem: Problem, weights: LossWeights
) -> tuple[Float[Array, ""], Float[Array, " terms"]]:
    """(total, terms in the order of TERMS), summed over the adapted Linears."""
    with jax.default_matmul_precision("highest"):
        terms = sum(
            linear_terms(adapter.pairs[name], problem[name], adapter.scale, weights)
            for name in problem
        )
    return jnp.sum(terms), jnp.asarray(terms)
