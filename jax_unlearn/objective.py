"""The three-term loss of one or several paths, each of which has a part of its own in it.

    forget = λ_f ‖R − change(X_f)‖    preserve = λ_p ‖change(X_p)‖    weight = λ_w Σ ‖B A‖

R = T − Y_f is what the change must add to the original outputs to reach the target. The change is
X Δᵀ where a Merger's last Linear alone is adapted (`LinearProblem`), and runs through the Merger
where linear_fc1 is (`merger_problem`). Frobenius norms, neither squared nor averaged (reduction
`sum`), or each divided by the root of its number of rows (`mean`: root mean square per row). Paths
are independent and their losses add up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jax_unlearn.lora import LoraAdapter, LoraPair

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


@runtime_checkable
class Part(Protocol):
    """What one path must forget and keep, as a pytree of constants; `name` is its key."""

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each Linear that is trained, by its full name."""

    def terms(
        self, name: str, adapter: LoraAdapter, weights: LossWeights
    ) -> Float[Array, " terms"]:
        """The weighted terms, in the order of TERMS."""


Problem = Mapping[str, Part]


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

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """The key is the Linear's own name."""
        return {name: self.shape}

    def terms(
        self, name: str, adapter: LoraAdapter, weights: LossWeights
    ) -> Float[Array, " terms"]:
        """The weighted terms, in the order of TERMS."""
        pair, rows = adapter.pairs[name], (self.forget_rows, self.preserve_rows)
        pair = jax.tree.map(jnp.asarray, pair)
        forget, preserve = (
            adapter.scale * narrow(jnp.asarray(x), pair.a) for x in (self.forget, self.preserve)
        )
        missed = missed_norm(forget, pair.b, jnp.asarray(self.residual))
        moved = product_norm(LoraPair(preserve.T, pair.b))
        return three_terms(missed, moved, [pair], rows, weights)


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


# The rules of these two are those of calculus, written by hand for the order of the operands: XLA's
# own leave a wide matrix transposed in a thin product, which costs five times as much on a CPU.
@jax.custom_vjp
def narrow(x: Float[Array, "n d_in"], a: Float[Array, "r d_in"]) -> Float[Array, "n r"]:
    """X Aᵀ, differentiable by A only."""
    return jnp.matmul(x, a.T, precision="highest")


def _narrow_forward(x: Array, a: Array) -> tuple[Array, Array]:
    return narrow(x, a), x


def _narrow_backward(x: Array, gradient: Array) -> tuple[None, Array]:
    return None, jnp.matmul(gradient.T, x, precision="highest")


narrow.defvjp(_narrow_forward, _narrow_backward)


@jax.custom_vjp
def missed_norm(
    h: Float[Array, "n r"], b: Float[Array, "e r"], residual: Float[Array, "n e"]
) -> Float[Array, ""]:
    """‖R − H Bᵀ‖, differentiable by H and B only; the gradient at zero is zero."""
    return _missed_forward(h, b, residual)[0]


def _missed_forward(h: Array, b: Array, residual: Array) -> tuple[Array, tuple[Array, ...]]:
    missed = residual - jnp.matmul(h, b.T, precision="highest")
    norm = safe_norm(missed)
    return norm, (h, b, missed, norm)


def _missed_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, None]:
    h, b, missed, norm = saved
    share = jnp.where(norm > 0, -gradient / jnp.where(norm > 0, norm, 1.0), 0.0)
    by_h = jnp.matmul(missed, b, precision="highest")
    # Without the barrier the transpose would go into the product.
    by_b = jax.lax.optimization_barrier(jnp.matmul(h.T, missed, precision="highest"))
    return share * by_h, share * by_b.T, None


missed_norm.defvjp(_missed_forward, _missed_backward)


def product_norm(pair: LoraPair) -> Float[Array, ""]:
    """‖B A‖ from the r × r Gram matrices, for ‖B A‖² = ⟨BᵀB, A Aᵀ⟩; B A itself is E × D_in."""
    return safe_sqrt(jnp.sum((pair.b.T @ pair.b) * (pair.a @ pair.a.T)))


def three_terms(
    missed: Float[Array, ""],
    moved: Float[Array, ""],
    pairs: Iterable[LoraPair],
    rows: tuple[float | Float[Array, ""], float | Float[Array, ""]],
    weights: LossWeights,
) -> Float[Array, " terms"]:
    """The weighted terms of one path, in the order of TERMS.

    Args:
        missed: ‖R − change‖ over the forget rows.
        moved: ‖change‖ over the preserve rows.
        pairs: of the path's adapted Linears.
        rows: how many there are of both, for the mean reduction.
    """
    if weights.reduction == "mean":
        missed /= rows[0] ** 0.5
        moved /= rows[1] ** 0.5
    weight = sum(product_norm(pair) for pair in pairs)
    return jnp.stack([weights.forget * missed, weights.preserve * moved, weights.weight * weight])


def shapes(problem: Problem) -> dict[str, tuple[int, int]]:
    """(E, D_in) of each Linear to train, by its full name."""
    return {
        linear: shape
        for name, part in problem.items()
        for linear, shape in part.shapes(name).items()
    }


def loss(
    adapter: LoraAdapter, problem: Problem, weights: LossWeights
) -> tuple[Float[Array, ""], Float[Array, " terms"]]:
    """(total, terms in the order of TERMS), summed over the paths."""
    with jax.default_matmul_precision("highest"):
        terms = sum(part.terms(name, adapter, weights) for name, part in problem.items())
    return jnp.sum(terms), jnp.asarray(terms)
