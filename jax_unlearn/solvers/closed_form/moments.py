"""The moments of a Linear's rows, which are all the closed form needs of them:

    G_f = X_fᵀX_f    C_f = X_fᵀR    e_f = ‖R‖²    G_p = X_pᵀX_p

They do not depend on the λ's, the rank or the seed, so that many settings can share them.
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
    """The moments of one Linear, projected to the span of its rows.

    With P = inputs P' outputsᵀ all norms are those of P', and the best P has that form, since a
    component outside the spans only increases the norms.

    Attributes:
        moments: the moments in the reduced dimensions.
        residual: RᵀR [k, k].
        inputs: [D_in, m] orthonormal columns; None if m = D_in.
        outputs: [E, k] orthonormal columns; None if k = E.
    """

    moments: Moments
    residual: Float64[ndarray, "k k"]
    inputs: Float64[ndarray, "d_in m"] | None
    outputs: Float64[ndarray, "e k"] | None


@dataclass(frozen=True)
class WithMoments(LinearProblem):
    """A `LinearProblem` that caches its moments, at most 8 (2 D_in² + D_in E + E²) bytes."""

    @cached_property
    def reduced(self) -> Reduced:
        return reduce(self)

    @cached_property
    def square(self) -> float:
        return square(self)


def with_moments(problem: Problem) -> dict[str, ProjectorProblem]:
    """The same problem with cached moments, for more than one `solve`.

    A single `solve` needs the moments of one Linear at a time; this keeps those of all Linears.
    """
    return {
        name: WithMoments(**vars(part)) if type(part) is LinearProblem else part
        for name, part in problem.items()
    }


def moments_of(linear: LinearProblem) -> Reduced:
    """The moments of a Linear, cached or computed."""
    return linear.reduced if isinstance(linear, WithMoments) else reduce(linear)


def square_of(linear: LinearProblem) -> float:
    """‖R‖² of a Linear, cached or computed."""
    return linear.square if isinstance(linear, WithMoments) else square(linear)


def square(linear: LinearProblem) -> float:
    """‖R‖².

    Raises:
        UserError: the rows are not finite.
    """
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    found = np.einsum("ij,ij->", residual, residual, dtype=np.float64)
    if not np.isfinite([found, *(x.sum(dtype=np.float64) for x in (forget, preserve))]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    return float(found)


def reduce(linear: LinearProblem) -> Reduced:
    """Compute the moments of the rows, converting blocks of rows to float64."""
    forget, residual, preserve = map(np.asarray, (linear.forget, linear.residual, linear.preserve))
    inputs = outputs = None
    # With nearly as many rows as columns, the QR costs more than the smaller problem saves.
    if 4 * (len(forget) + len(preserve)) <= 3 * forget.shape[1]:
        inputs, rows = span(np.concatenate([forget, preserve]))
        forget, preserve = rows[: len(forget)], rows[len(forget) :]
    if len(residual) < residual.shape[1]:
        outputs, residual = span(residual)
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


def span(rows: Float[ndarray, "n d"]) -> tuple[Float64[ndarray, "d n"], Float64[ndarray, "n n"]]:
    """(orthonormal basis [d, n] of the rows, the rows in that basis [n, n])."""
    basis, upper = np.linalg.qr(rows.T.astype(np.float64))
    return basis, upper.T
