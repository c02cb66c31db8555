"""The moments of a Linear's rows: all that the closed form asks of them, whatever the settings.

    G_f = X_fᵀX_f    C_f = X_fᵀR    e_f = ‖R‖²    G_p = X_pᵀX_p

They depend neither on the λ's nor on rank or seed, and so many settings can share them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from jax_unlearn.features.gram import BLOCK, gram
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.loss import Problem, ProjectorProblem
from jax_unlearn.runtime.errors import UserError


class Moments(NamedTuple):
    """G_f [m, m], C_f [m, k], e_f and G_p [m, m] of one Linear."""

    forget: Float64[ndarray, "m m"]
    cross: Float64[ndarray, "m k"]
    square: float
    preserve: Float64[ndarray, "m m"]


@dataclass(frozen=True)
class Reduced:
    """One Linear in no more dimensions than its rows span.

    residual: RᵀR [k, k]. inputs [D_in, m] and outputs [E, k]: orthonormal, None where m = D_in or
    k = E. With P = inputs P' outputsᵀ all norms are those of P'; and the best P is of that form,
    for what another has beyond the spans only adds to its norms.
    """

    moments: Moments
    residual: Float64[ndarray, "k k"]
    inputs: Float64[ndarray, "d_in m"] | None
    outputs: Float64[ndarray, "e k"] | None


@dataclass(frozen=True)
class WithMoments(LinearProblem):
    """A `LinearProblem` that keeps its moments once they have been asked for.

    They take 8 (2 D_in² + D_in E + E²) bytes, where the rows span no less.
    """

    @cached_property
    def reduced(self) -> Reduced:
        return reduce(self)

    @cached_property
    def square(self) -> float:
        return square(self)


def with_moments(problem: Problem) -> dict[str, ProjectorProblem]:
    """The same problem for more than one `solve`, of which only the first takes its moments.

    Alone a `solve` needs those of one Linear at a time; this keeps those of all of them.
    """
    return {
        name: WithMoments(**vars(part)) if type(part) is LinearProblem else part
        for name, part in problem.items()
    }


def moments_of(linear: LinearProblem) -> Reduced:
    """Its moments: those that it keeps, if it does."""
    return linear.reduced if isinstance(linear, WithMoments) else reduce(linear)


def square_of(linear: LinearProblem) -> float:
    """‖R‖², in the same way."""
    return linear.square if isinstance(linear, WithMoments) else square(linear)


def square(linear: LinearProblem) -> float:
    """‖R‖².

    Raises:
        UserError: rows that are not finite.
    """
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    found = np.einsum("ij,ij->", residual, residual, dtype=np.float64)
    if not np.isfinite([found, *(x.sum(dtype=np.float64) for x in (forget, preserve))]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    return float(found)


def reduce(linear: LinearProblem) -> Reduced:
    """The moments of the rows, which are made float64 a block at a time."""
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    inputs = outputs = None
    # Rows nearly as many as columns would cost more to factor than a smaller problem saves.
    if 4 * (len(forget) + len(preserve)) <= 3 * forget.shape[1]:
        inputs, rows = _span(np.concatenate([forget, preserve]))
        forget, preserve = rows[: len(forget)], rows[len(forget) :]
    if len(residual) < residual.shape[1]:
        outputs, residual = _span(residual)
    products = gram(residual)
    moments = Moments(
        gram(forget), _product(forget, residual), float(products.trace()), gram(preserve)
    )
    return Reduced(moments, products, inputs, outputs)


def _product(x: Float[ndarray, "n d"], y: Float[ndarray, "n e"]) -> Float64[ndarray, "d e"]:
    """XᵀY."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for first in range(0, len(x), BLOCK):
        one, other = (np.asarray(rows[first : first + BLOCK], np.float64) for rows in (x, y))
        total += one.T @ other
    return total


def _span(rows: Float[ndarray, "n d"]) -> tuple[Float64[ndarray, "d n"], Float64[ndarray, "n n"]]:
    """(Orthonormal columns, the rows in their terms)."""
    basis, upper = np.linalg.qr(rows.T.astype(np.float64))
    return basis, upper.T
