"""Fewer rows with the very same loss.

Rows enter the loss only through norms of their products, and an orthogonal matrix leaves a norm as
it is: with X = Q S and S triangular, ‖X Δᵀ‖ = ‖S Δᵀ‖, and with [X R] = Q [S_x S_r],
‖R − X Δᵀ‖ = ‖S_r − S_x Δᵀ‖. So no more than D_in (+ E) rows are needed, however many there were.
A Gram matrix would do too, but squares the condition number and cancels when the fit is good.
"""

from dataclasses import replace
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jax_unlearn.objective import LinearProblem, Part, Problem


def triangular_factor(
    x: Float[Array | np.ndarray, "n width"],
) -> Float[np.ndarray, "m width"]:
    """S [min(n, width), width] with SᵀS = XᵀX, by QR in float64, a block of rows at a time."""
    rows, width = x.shape
    block = 4 * width
    factor = np.zeros((0, width))
    for first in range(0, rows, block):
        stacked = np.concatenate([factor, np.asarray(x[first : first + block], np.float64)])
        # NumPy's stubs know only the pair that the other modes return.
        factor = cast(np.ndarray, np.linalg.qr(stacked, mode="r"))
    return factor


def compress(problem: Problem) -> dict[str, Part]:
    """The same problem on at most D_in + E forget and D_in preserve rows of each Linear.

    The loss and its gradient agree with the original's to float32 rounding; the number of original
    rows is kept for the mean reduction. Other parts keep their rows: they do not combine where a
    GELU lies between the change and the output.
    """
    return {
        name: _compress(part) if isinstance(part, LinearProblem) else part
        for name, part in problem.items()
    }


def _compress(linear: LinearProblem) -> LinearProblem:
    e, d_in = linear.shape
    if len(linear.forget) > d_in + e:
        both = triangular_factor(np.concatenate([linear.forget, linear.residual], axis=1))
        forget, residual = np.split(both.astype(np.float32), [d_in], axis=1)
        linear = replace(linear, forget=jnp.asarray(forget), residual=jnp.asarray(residual))
    if len(linear.preserve) > d_in:
        preserve = triangular_factor(linear.preserve).astype(np.float32)
        linear = replace(linear, preserve=jnp.asarray(preserve))
    return linear
