"""A lower bound of the loss for changes of every rank, to tell how near the found one is.

Without the limit on the rank the problem is convex, and its dual says how low the loss can be.
"""

from itertools import islice

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.optimize import minimize

from jax_unlearn.solvers.closed_form.moments import Moments, Reduced
from jax_unlearn.solvers.closed_form.ridge import (
    ALIKE,
    RIDGE,
    Ridge,
    Terms,
    stepwise,
    threads,
    until_converged,
)
from jax_unlearn.solvers.closed_form.subspace import INNER, refined

# Below this size all columns of R take plain steps, whose factors cost little.
PLAIN = 512
# Columns that stand in for all others, how near their search and the bound itself should come, and
# how many factors of the whole problem are spent on that.
SKETCH, SKETCH_TOLERANCE, GAP, LOOKS = 32, 1e-3, 1e-4, 3
# Relative error of a moment, with room.
ROUNDING = 1e-14


def lower_bound(reduced: Reduced, costs: Terms, right: Float64[ndarray, "k q"], seed: int) -> float:
    """A value that no change of any rank has a loss below.

    It takes the η's of the best change of full rank, whose problem is convex, and `dual`. η's are
    norms: where there are many columns of R, few replace them in the search, those along `right`
    (orthonormal, where the change is large) and random signs for the others, which keep norms on
    average.
    """
    moments, (m, k) = reduced.moments, reduced.moments.cross.shape
    if not costs[0] * moments.square > 0:
        return 0.0
    if m < PLAIN:
        steps, tolerance = stepwise(moments, costs, k, ALIKE), GAP / 100
    elif k <= SKETCH + right.shape[1]:
        steps, tolerance = refined(moments, costs, k, ALIKE, GAP), GAP
    else:
        few, tolerance = _sketch(reduced, right, seed), SKETCH_TOLERANCE
        steps = refined(few, costs, k, ALIKE, tolerance)
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
    """(A lower bound, the terms) of the best P of full rank for the η's of `terms`.

    For any P, f(P) ≥ ⟨U, R⟩ if ‖U‖ ≤ c_f, ‖V‖ ≤ c_p and ‖Z‖ ≤ c_w with Z = X_fᵀU − X_pᵀV. At the
    minimum these are equal for U along R − X_f P and V along X_p P; near it, with the best x, y, z,

        U = x R + y (R − X_f P)    V = (y − z) a X_p P    Z = x C_f + y b P + z a G_p P

    come near by one order more. For H P = C_f, this takes no rows. What rounding may have made of
    the moments is added to the norms' forms in (x, y, z), and taken off the gain. Without a weight
    term Z is not zero but y b P with the least b: the gain is less by what that is with a change
    ten times as large as P.
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
    """The most of gain · t, or nearly, where √(tᵀ F t) ≤ c for each form F and its cost c.

    By SciPy's SLSQP from the best t along (0, 1, 0). Where c_w = 0 that is all, and the third form
    does not count: it would be zero but for the least ridge.
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
