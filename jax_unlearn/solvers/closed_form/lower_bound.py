"""A lower bound of the loss over changes of every rank, to measure the gap of the solution.

Without the limit on the rank the problem is convex, and its dual bounds the loss from below.
"""

from itertools import islice

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.optimize import minimize

from jax_unlearn.solvers.closed_form.moments import Moments, Reduced
from jax_unlearn.solvers.closed_form.ridge import (
    EQUAL_TERMS,
    RIDGE,
    Ridge,
    Terms,
    stepwise,
    threads,
    until_converged,
)
from jax_unlearn.solvers.closed_form.subspace import INNER, refined

# Below this size the plain iteration is used, since factorisations are cheap.
PLAIN = 512
# Number of random columns that replace those of R, relative tolerance of the search with them,
# relative gap at which the bound is good enough, and most factorisations of the whole problem.
SKETCH, SKETCH_TOLERANCE, GAP, LOOKS = 32, 1e-3, 1e-4, 3
# Upper estimate of the relative rounding error of a moment.
ROUNDING = 1e-14


def lower_bound(reduced: Reduced, costs: Terms, right: Float64[ndarray, "k q"], seed: int) -> float:
    """A lower bound of the loss over changes of every rank.

    Finds the η's (see `ridge`) of the best change of full rank, a convex problem, and evaluates
    `dual` there. The η's are norms, so if R has many columns the search replaces them by few: those
    along `right`, where the change is large, and random signs for the others, which preserve norms
    on average.

    Args:
        reduced: the moments of the Linear.
        costs: c_f, c_p and c_w.
        right: orthonormal right factor of the change that was found.
        seed: seed of the random signs.
    """
    moments, (m, k) = reduced.moments, reduced.moments.cross.shape
    if not costs[0] * moments.square > 0:
        return 0.0
    if m < PLAIN:
        steps, tolerance = stepwise(moments, costs, k, EQUAL_TERMS), GAP / 100
    elif k <= SKETCH + right.shape[1]:
        steps, tolerance = refined(moments, costs, k, EQUAL_TERMS, GAP), GAP
    else:
        few, tolerance = _sketch(reduced, right, seed), SKETCH_TOLERANCE
        steps = refined(few, costs, k, EQUAL_TERMS, tolerance)
    with threads(m):
        *_, found = until_converged(islice(steps, INNER), tolerance)
        terms, bound = found.terms, 0.0
        for _ in range(LOOKS):
            value, terms = dual(moments, costs, terms)
            bound = max(bound, value)
            if terms.sum() - bound <= GAP * terms.sum():
                break
    return bound


def _sketch(reduced: Reduced, right: Float64[ndarray, "k q"], seed: int) -> Moments:
    moments, k = reduced.moments, len(right)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(k, SKETCH))
    signs -= right @ (right.T @ signs)
    columns = np.concatenate([right, signs / SKETCH**0.5], axis=1)
    square = float(np.vdot(columns, reduced.residual @ columns))
    return moments._replace(cross=moments.cross @ columns, square=square)


def dual(moments: Moments, costs: Terms, terms: Terms) -> tuple[float, Terms]:
    """(lower bound, terms) at the best P of full rank for the η's of `terms`.

    For any P, f(P) ≥ ⟨U, R⟩ if ‖U‖ ≤ c_f, ‖V‖ ≤ c_p and ‖Z‖ ≤ c_w with Z = X_fᵀU − X_pᵀV. At the
    minimum these are equal for U along R − X_f P and V along X_p P; near it, with the best x, y, z,

        U = x R + y (R − X_f P)    V = (y − z) a X_p P    Z = x C_f + y b P + z a G_p P

    are one order more accurate. Since H P = C_f, this needs no rows. The possible rounding error of
    the moments is added to the quadratic forms of the norms in (x, y, z), and subtracted from the
    gain. Without a weight term Z is not zero but y b P with the smallest b: the gain is reduced by
    the effect of that on a change ten times as large as P.
    """
    ridge = Ridge(moments, costs, terms, RIDGE)
    p = np.ascontiguousarray(ridge.inverse(moments.cross))
    a, b, square = ridge.a, ridge.b, moments.square
    parts, shares = (moments.cross, p, moments.preserve @ p), np.array([1.0, b, a])
    table = np.array([[np.vdot(one, two) for two in parts] for one in parts])
    fit, size, keep = np.maximum(table[1], 0)
    noise = ROUNDING * square
    rest = a * keep + b * size
    missed = max(square - fit - rest, 0.0)
    u, v = np.zeros((2, 3, 3))
    u[:2, :2] = [[square, missed + rest], [missed + rest, missed + noise]]
    v[1:, 1:] = a * a * keep * np.array([[1.0, -1.0], [-1.0, 1.0]])
    z = table * np.outer(shares, shares)
    z[np.diag_indices(3)] *= 1 + 3 * ROUNDING
    z[1, 1] += (ROUNDING * ridge.trace) ** 2 * size
    spared = noise if costs[2] > 0 else noise + 10 * b * size
    gain = np.array([square, max(missed + rest - spared, 0.0), 0.0])
    return _most(gain, (u, v, z), costs), costs * np.sqrt([missed, keep, size])


def _most(
    gain: Float64[ndarray, "3"], forms: tuple[Float64[ndarray, "3 3"], ...], costs: Terms
) -> float:
    """The approximate maximum of gain · t, subject to √(tᵀ F t) ≤ c for each form F with cost c.

    Uses SciPy's SLSQP, from the best t along (0, 1, 0). If c_w = 0 that t is returned, and the
    third form is ignored: it would be zero without the smallest ridge.
    """
    counted = [(form, c) for form, c in zip(forms[: 3 if costs[2] > 0 else 2], costs, strict=False)]
    plain = min(c / form[1, 1] ** 0.5 for form, c in counted if form[1, 1] > 0)
    if not costs[2] > 0 or not gain[1] > 0:
        return float(gain[1] * plain)
    scale = plain * np.array([(forms[0][1, 1] / gain[0]) ** 0.5, 1.0, 1.0])
    scaled = [form * np.outer(scale, scale) / c**2 for form, c in counted if c > 0]
    slope, start = gain * scale / (gain[1] * plain), np.array([0.0, 1.0, 0.0])
    limits = [
        {"type": "ineq", "fun": lambda t, f=f: 1 - t @ f @ t, "jac": lambda t, f=f: -2 * f @ t}
        for f in scaled
    ]
    t = minimize(lambda t: -slope @ t, start, jac=lambda t: -slope, constraints=limits).x
    inside = slope @ t / max(t @ f @ t for f in scaled) ** 0.5
    return float(gain[1] * plain * max(1.0, inside if np.isfinite(inside) else 0.0))
