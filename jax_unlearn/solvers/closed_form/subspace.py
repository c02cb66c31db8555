"""The iteration of `ridge` in a subspace of left factors, which needs few factorisations.

A step of the plain iteration factors a D_in × D_in matrix, and a hundred steps may be needed. But
the best P depends, smoothly, on a and b only. So the iteration first runs to convergence among the
changes whose left factor lies in the span of H⁻¹C_f V and its derivatives with respect to a and b
(H⁻¹G_p and H⁻¹ times it); only then is H factored again, for the last a and b. The next iteration
starts where the previous one ended, so f cannot rise; two to four factorisations suffice
(`refined`).

Other λ's mean other a and b of the same problem, whose changes lie in nearly the same span
(`recycled`). With fixed η's and right factor V, a step outside the span lowers the majorant by

    c_f / (2 η_f) · tr(Yᵀ H⁻¹ Y),   Y = C_f V − H P,

and H ≥ l H' with l = min(1, a / a', b / b') for any factorised H', that at a' and b'. If this gain
is too large, the span is extended by H'⁻¹Y, a step of conjugate gradients with H' as
preconditioner. A better V may still exist outside the span. So each factorisation adds more columns
to the span than the rank, those of the q largest gains σ² of C_fᵀH'⁻¹C_f; directions orthogonal to
them gain at most σ²_q / l in C_fᵀH⁻¹C_f. A factorisation is used for other a and b only while that
is below the gain of the change, or while they are close to its own; if none qualifies, H is
factored again. Since steps in a wide span are expensive, the span is cut back when it grows too
wide (`narrowed`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.linalg import qr

from jax_unlearn.solvers.closed_form.moments import Moments
from jax_unlearn.solvers.closed_form.ridge import (
    Change,
    Ridge,
    Terms,
    clip_terms,
    minimum,
    ridge_of,
    stepwise,
    threads,
    until_converged,
)

# Within a span: largest number of iterations, and their tolerance as a share of the solver's; the
# last is for a span that is reused, where full accuracy is not needed.
INNER, SHARE, SHARE_AGAIN = 1000, 1e-6, 1e-2
# Below this size factorisations are cheaper than avoiding them.
FACTORED = 1024
# For reuse with other settings: columns beyond the rank, largest condition number that a
# preconditioner may leave, condition number up to which gains are treated as equal, and number of
# factorisations kept per Linear, of 8 D_in² bytes each.
EXTRA_COLUMNS, MAX_CONDITION, SAME_CONDITION, MAX_FACTORS = 20, 300.0, 2.0, 2
# A span wider than this multiple of a factorisation's columns, or than this share of all
# dimensions, is cut to the columns of the newest factorisations, at most half as many.
MAX_WIDTH_RATIO, WIDEST = 6, 0.25
# Columns whose component outside the span is below this share are not added to it.
DEPENDENT = 1e-12

# Iteration as a function of costs, rank, initial terms and tolerance.
Steps = Callable[[Terms, int, Terms, float], Iterator[Change]]


class Factor(NamedTuple):
    """A factorised ridge, the columns added for it, and their least gain (0 if all were added)."""

    ridge: Ridge
    gain: float
    columns: Float64[ndarray, "m q"]


class OutsideGain(NamedTuple):
    """Upper bound of the gain of a step outside the span, and the factors of H'⁻¹Y."""

    excess: float
    ridge: Ridge
    whitened: Float64[ndarray, "m q"]

    def columns(self) -> Float64[ndarray, "m q"]:
        """H'⁻¹Y, the columns by which to extend the span."""
        return self.ridge.backward(self.whitened)


class Subspace:
    """The changes left · P' · rightᵀ, and the moments projected to them.

    left [m, s] and right [k, t] have orthonormal columns; `right` spans C_fᵀ left, since other
    directions cannot lower the loss. Products with the whole matrices are computed for new columns
    only.
    """

    def __init__(self, moments: Moments) -> None:
        m, k = moments.cross.shape
        self.whole, self.factors = moments, list[Factor]()
        self.left, self.right = np.zeros((m, 0)), np.zeros((k, 0))
        # G_f left, G_p left and C_f right.
        self.forget = self.preserve = self.cross = self.left
        none = np.zeros((0, 0))
        self.moments = Moments(none, none, moments.square, none)

    @property
    def size(self) -> int:
        return self.left.shape[1]

    def factor(self, costs: Terms, rank: int, terms: Terms, more: int = 0) -> None:
        """Extend the span for the η's of these terms: by the best change and its derivatives.

        Args:
            costs: c_f, c_p and c_w.
            rank: rank of the change.
            terms: terms that define the η's.
            more: columns beyond the rank; if positive, the factorisation is kept.
        """
        ridge = Ridge(self.whole, costs, terms)
        left, right = minimum(self.whole, rank + more, ridge)
        every = right.shape[1] == len(right)
        best = left if every else left[:, -rank:]
        both = ridge.inverse(np.concatenate([self.whole.preserve @ best, best], axis=1))
        columns = np.concatenate([left, both], axis=1)
        self.extend(columns)
        if more:
            gain = 0.0 if every else _least_gain(left, self.whole.cross @ right)
            self.factors = [*self.factors[1 - MAX_FACTORS :], Factor(ridge, gain, columns)]

    def extend(self, columns: Float64[ndarray, "m n"]) -> None:
        """Extend the span by these columns."""
        added = _orthonormal(self.left, columns)
        # G_f and G_p are symmetric, and BLAS is faster with few rows than with few columns.
        forget, preserve = (added.T @ self.whole.forget).T, (added.T @ self.whole.preserve).T
        outputs = _orthonormal(self.right, (added.T @ self.whole.cross).T)
        cross, old = self.whole.cross @ outputs, self.moments.cross
        self.left = np.concatenate([self.left, added], axis=1)
        self.right = np.concatenate([self.right, outputs], axis=1)
        self.moments = Moments(
            _bordered(self.moments.forget, self.left.T @ forget),
            np.concatenate(
                [np.concatenate([old, added.T @ self.cross]), self.left.T @ cross], axis=1
            ),
            self.whole.square,
            _bordered(self.moments.preserve, self.left.T @ preserve),
        )
        self.forget = np.concatenate([self.forget, forget], axis=1)
        self.preserve = np.concatenate([self.preserve, preserve], axis=1)
        self.cross = np.concatenate([self.cross, cross], axis=1)

    def narrowed(self) -> "Subspace":
        """This subspace, or that of its newest factorisations if it has grown too wide."""
        taken = [factor.columns.shape[1] for factor in self.factors]
        most = min(MAX_WIDTH_RATIO * max(taken, default=0), WIDEST * len(self.left))
        if self.size <= most:
            return self
        other = Subspace(self.whole)
        for factor in reversed(self.factors):
            if other.size + factor.columns.shape[1] > most / 2:
                break
            other.extend(factor.columns)
            other.factors.insert(0, factor)
        return other

    def converge(self, costs: Terms, rank: int, terms: Terms, tolerance: float) -> Change:
        """Iterate to convergence from these terms; the change is in the basis of the span."""
        steps = islice(stepwise(self.moments, costs, rank, terms), INNER)
        with threads(self.size):
            return list(until_converged(steps, tolerance))[-1]

    def expand(self, change: Change) -> Change:
        """A change in the basis of the span, as a change of shape [m, k]."""
        return Change(self.left @ change.left, self.right @ change.right, change.terms)

    def outside_gain(self, change: Change, costs: Terms) -> OutsideGain | None:
        """Bound the gain of a step outside the span; None if no kept factorisation can."""
        a, b, _ = ridge_of(self.whole, costs, change.terms)
        left, cross = change.left, self.cross @ change.right
        gain = _least_gain(left, self.moments.cross @ change.right)
        near = []
        for one in self.factors:
            low, condition = one.ridge.bounds(a, b)
            if condition <= SAME_CONDITION or (
                condition <= MAX_CONDITION and one.gain <= low * gain
            ):
                near.append((condition, low, one.ridge))
        if not near:
            return None
        _, low, ridge = min(near, key=lambda one: one[0])
        missed = cross - self.forget @ left - a * (self.preserve @ left) - b * (self.left @ left)
        whitened = ridge.forward(missed)
        majorant = costs[0] ** 2 / (2 * clip_terms(self.whole.square, costs, change.terms)[0])
        return OutsideGain(majorant * float(np.vdot(whitened, whitened)) / low, ridge, whitened)


def _least_gain(left: Float64[ndarray, "m q"], cross: Float64[ndarray, "m q"]) -> float:
    """The least gain of the columns of left = H⁻¹C_f V: min diag(leftᵀ cross), cross = C_f V."""
    return float(np.einsum("ij,ij->j", left, cross).min(initial=np.inf))


def solve_fresh(moments: Moments) -> Steps:
    """The iteration of a single setting."""
    return partial(refined, moments)


def solve_recycled(spaces: dict[str, Subspace], name: str, moments: Moments) -> Steps:
    """The iteration of one of several settings, which share the span `spaces[name]`."""
    if len(moments.forget) < FACTORED:
        return solve_fresh(moments)
    kept = spaces.get(name)
    if kept is None or kept.whole is not moments:
        kept = Subspace(moments)
    spaces[name] = kept.narrowed()
    return partial(recycled, spaces[name])


def refined(
    moments: Moments, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """Iterate to convergence in the span, factor H for the result, extend the span, and repeat."""
    space = Subspace(moments)
    while True:
        space.factor(costs, rank, terms)
        inner = space.converge(costs, rank, terms, SHARE * tolerance)
        yield space.expand(inner)
        terms = inner.terms


def recycled(
    space: Subspace, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """As `refined`, starting in a span of other settings, until a step outside gains too little.

    Without a weight term b is only large enough for a factorisation to exist, and the span is not
    reused.

    Args:
        space: the shared span, which is extended.
        costs: c_f, c_p and c_w.
        rank: rank of the change.
        terms: terms that define the first η's.
        tolerance: smallest gain of the majorant, relative to the loss.
    """
    if not costs[2] > 0:
        yield from refined(space.whole, costs, rank, terms, tolerance)
    if not space.size:
        space.factor(costs, rank, terms, EXTRA_COLUMNS)
    while True:
        inner = space.converge(costs, rank, terms, SHARE_AGAIN * tolerance)
        yield space.expand(inner)
        terms = inner.terms
        gain = space.outside_gain(inner, costs)
        if gain is None:
            space.factor(costs, rank, terms, EXTRA_COLUMNS)
        elif gain.excess <= tolerance * inner.total:
            return
        else:
            space.extend(gain.columns())


def _bordered(
    gram: Float64[ndarray, "s s"], columns: Float64[ndarray, "t n"]
) -> Float64[ndarray, "t t"]:
    """The symmetric matrix [t, t] with `gram` in the corner and `columns` as its last columns."""
    new = columns[len(gram) :]
    return np.block([[gram, columns[: len(gram)]], [columns[: len(gram)].T, (new + new.T) / 2]])


def _orthonormal(
    basis: Float64[ndarray, "m s"], columns: Float64[ndarray, "m n"]
) -> Float64[ndarray, "m q"]:
    """Orthonormal columns of the span of `columns` outside that of `basis`.

    Directions below the share DEPENDENT of a column are dropped. Orthogonalisation is done twice,
    because the first remainder may be small enough to be dominated by rounding.
    """
    sizes = np.linalg.norm(columns, axis=0)
    found = columns / np.where(sizes > 0, sizes, 1.0)
    for _ in range(2):
        rest = found - basis @ (basis.T @ found)
        found, triangle, _ = qr(rest, mode="economic", pivoting=True, check_finite=False)
        found = found[:, np.abs(np.diag(triangle)) > DEPENDENT]
    return found
