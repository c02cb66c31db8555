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
from jax import Array
from jaxtyping import Float

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.norms import product_norm

Reduction = Literal["sum", "mean"]
TERMS = ("forget", "preserve", "weight")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossWeights:
    """λ_f, λ_p and λ_w, and how rows are summed. The λ's may be traced, the reduction is static."""

    forget: float | Float[Array, ""]
    preserve: float | Float[Array, ""]
    weight: float | Float[Array, ""]
    reduction: Reduction = field(metadata={"static": True})


@runtime_checkable
class ProjectorProblem(Protocol):
    """What one path must forget and keep, as a pytree of constants; `name` is its key."""

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each Linear that is trained, by its full name."""

    def terms(
        self, name: str, adapter: LoraAdapter, weights: LossWeights
    ) -> Float[Array, " terms"]:
        """The weighted terms, in the order of TERMS."""


Problem = Mapping[str, ProjectorProblem]


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
