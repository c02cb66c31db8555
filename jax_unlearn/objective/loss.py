"""The three-term loss, summed over one or several projectors.

    forget = λ_f ‖R − change(X_f)‖    preserve = λ_p ‖change(X_p)‖    weight = λ_w Σ ‖B A‖

R = T − Y_f is what the change must add to the original outputs to reach the target. The change is
X Δᵀ where only a Merger's last Linear is adapted (`LinearProblem`), and passes through the Merger
where linear_fc1 is adapted (`merger_problem`). Norms are Frobenius norms, not squared; with the
reduction `mean` each is divided by the square root of its number of rows (root mean square per
row), with `sum` it is not. Projectors are independent and their losses add up.
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
    """λ_f, λ_p, λ_w and the reduction over rows. The λ's may be traced; the reduction is static."""

    forget: float | Float[Array, ""]
    preserve: float | Float[Array, ""]
    weight: float | Float[Array, ""]
    reduction: Reduction = field(metadata={"static": True})


@runtime_checkable
class ProjectorProblem(Protocol):
    """The part of the loss of one projector, as a pytree of constants; `name` is its key."""

    @property
    def rows(self) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
        """Number of forget rows, and of preserve rows or 1, by which the mean reduction divides."""

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each trained Linear, by its full name."""

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
    """The weighted terms of one projector, in the order of TERMS.

    Args:
        missed: ‖R − change‖ over the forget rows.
        moved: ‖change‖ over the preserve rows.
        pairs: the LoRA pairs of the projector's adapted Linears.
        rows: number of forget and of preserve rows, for the mean reduction.
        weights: the λ's and the reduction.
    """
    if weights.reduction == "mean":
        missed /= rows[0] ** 0.5
        moved /= rows[1] ** 0.5
    weight = sum(product_norm(pair) for pair in pairs)
    return jnp.stack([weights.forget * missed, weights.preserve * moved, weights.weight * weight])


def shapes(problem: Problem) -> dict[str, tuple[int, int]]:
    """(E, D_in) of each trained Linear, by its full name."""
    return {
        linear: shape
        for name, part in problem.items()
        for linear, shape in part.shapes(name).items()
    }


def loss(
    adapter: LoraAdapter, problem: Problem, weights: LossWeights
) -> tuple[Float[Array, ""], Float[Array, " terms"]]:
    """(total, terms in the order of TERMS), summed over the projectors."""
    with jax.default_matmul_precision("highest"):
        terms = sum(part.terms(name, adapter, weights) for name, part in problem.items())
    return jnp.sum(terms), jnp.asarray(terms)


_compiled = jax.jit(loss)


def loss_alone(
    adapter: LoraAdapter, problem: Problem, weights: LossWeights
) -> tuple[Float[Array, ""], Float[Array, " terms"]]:
    """`loss` as one program, where no other holds it.

    Its operations one by one would each be compiled for each shape.
    """
    # JAX takes a dictionary, but not every mapping.
    return _compiled(adapter, dict(problem), weights)
