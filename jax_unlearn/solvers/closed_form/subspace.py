"""The changes whose left factor lies in a span: the iteration of `ridge` where it costs little.

A step of the iteration takes a factor of a D_in × D_in matrix, and there may be a hundred. But the
best P depends on a and b alone, and smoothly. So the iteration is carried to its end among the
changes whose left factor lies in the span of H⁻¹C_f V and its derivatives by a and b (H⁻¹G_p and
H⁻¹ times it), and only then is H factored again, for the a and b that it ended at. It begins with
what the last span ended with, so that f cannot rise; from two to four factors do (`refined`).

Other λ's are other a and b of the same problem: their changes lie in nearly the same span
(`recycled`). With the η's and the right factor V held, a step outside of it lowers the majorant by

    c_f / (2 η_f) · tr(Yᵀ H⁻¹ Y),   Y = C_f V − H P,

and H ≥ l H' with l = min(1, a / a', b / b') for any factor that there is, that of H' at a' and b'.
Where this is too much, H'⁻¹Y is what the span lacks: a step of conjugate gradients with H' as
preconditioner. Another V may still be better than any in the span. So at each factor the span takes
more columns than the rank has, of the q largest gains σ² of C_fᵀH'⁻¹C_f; what is across them gains
at most σ²_q / l by C_fᵀH⁻¹C_f. A factor serves other a and b only as long as that is below what the
change gains, or as they are close to its own; where none does, there is a new one. A step within a
wide span costs, too: what others lacked long ago is given up in time (`narrowed`).
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

# Within a span: at most so many iterations, to this share of the tolerance; and of one that is used
# again, whose end need not be the last digit's.
INNER, SHARE, SHARE_AGAIN = 1000, 1e-6, 1e-2
# Below this size factors cost less than what spares them.
FACTORED = 1024
# For other settings: columns beyond the rank, what condition a preconditioner may leave, up to what
# condition all gains are alike, and how many factors of a Linear are kept, of 8 D_in² bytes each.
EXTRA_COLUMNS, MAX_CONDITION, SAME_CONDITION, MAX_FACTORS = 20, 300.0, 2.0, 2
# What a span saves it loses again by its width: beyond so many times a factor's columns, or this
# share of all dimensions, it is cut to those of the newest factors, half as many at most.
MAX_WIDTH_RATIO, WIDEST = 6, 0.25
# Of a column that the span has but for less than this share, nothing is added to it.
DEPENDENT = 1e-12

# Of costs, rank, terms to begin with and tolerance.
Steps = Callable[[Terms, int, Terms, float], Iterator[Change]]


class Factor(NamedTuple):
    """A ridge, the columns for which the span took it, and the least gain; zero if it took all."""

    ridge: Ridge
    gain: float
    columns: Float64[ndarray, "m q"]


class Lacking(NamedTuple):
    """The most that a step outside may lower the majorant by, and what makes H'⁻¹Y."""

    excess: float
    ridge: Ridge
    whitened: Float64[ndarray, "m q"]

    def columns(self) -> Float64[ndarray, "m q"]:
        """What the span lacks."""
        return self.ridge.backward(self.whitened)


class Subspace:
    """The changes left · P' · rightᵀ, and what is asked of the moments for them.

    left [m, s] and right [k, t] have orthonormal columns; those of `right` span C_fᵀ left's, for
    what is outside of these is no use. Products with whole matrices are of new columns only.
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
        """Extend by what the best change for the η's of these terms lies in.

        more: columns beyond the rank; if there are any, the factor is kept.
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
        """This, or the span of its newest factors where it has grown too wide."""
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

    def settled(self, costs: Terms, rank: int, terms: Terms, tolerance: float) -> Change:
        """The end of the iteration from these terms, in the terms of the span."""
        steps = islice(stepwise(self.moments, costs, rank, terms), INNER)
        with threads(self.size):
            return list(until_converged(steps, tolerance))[-1]

    def outside(self, change: Change) -> Change:
        """The same change as one of D_in × E."""
        return Change(self.left @ change.left, self.right @ change.right, change.terms)

    def lacking(self, change: Change, costs: Terms) -> Lacking | None:
        """What a step outside of the span could do to its end; None if no factor can tell."""
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
        majorant = costs[0] ** 2 / (2 * clip_terms(self.whole, costs, change.terms)[0])
        return Lacking(majorant * float(np.vdot(whitened, whitened)) / low, ridge, whitened)


def _least_gain(left: Float64[ndarray, "m q"], cross: Float64[ndarray, "m q"]) -> float:
    """Of the columns of H⁻¹C_f V, with `cross` C_f V: the diagonal of VᵀC_fᵀH⁻¹C_f V."""
    return float(np.einsum("ij,ij->j", left, cross).min(initial=np.inf))


def alone(moments: Moments) -> Steps:
    """The iteration of one setting."""
    return partial(refined, moments)


def solve_recycled(spaces: dict[str, Subspace], name: str, moments: Moments) -> Steps:
    """That of a setting after others, whose span is kept by this name, or will be."""
    if len(moments.forget) < FACTORED:
        return alone(moments)
    kept = spaces.get(name)
    if kept is None or kept.whole is not moments:
        kept = Subspace(moments)
    spaces[name] = kept.narrowed()
    return partial(recycled, spaces[name])


def refined(
    moments: Moments, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """A new factor after each end of the iteration in the span of all so far."""
    space = Subspace(moments)
    while True:
        space.factor(costs, rank, terms)
        inner = space.settled(costs, rank, terms, SHARE * tolerance)
        yield space.outside(inner)
        terms = inner.terms


def recycled(
    space: Subspace, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """The same in the span that other settings left, until a step outside would win too little.

    Without a weight term b is whatever makes a factor exist, and the setting is solved alone.

    Args:
        tolerance: of the majorant, relative to the loss.
    """
    if not costs[2] > 0:
        yield from refined(space.whole, costs, rank, terms, tolerance)
    if not space.size:
        space.factor(costs, rank, terms, EXTRA_COLUMNS)
    while True:
        inner = space.settled(costs, rank, terms, SHARE_AGAIN * tolerance)
        yield space.outside(inner)
        terms = inner.terms
        lacking = space.lacking(inner, costs)
        if lacking is None:
            space.factor(costs, rank, terms, EXTRA_COLUMNS)
        elif lacking.excess <= tolerance * inner.total:
            return
        else:
            space.extend(lacking.columns())


def _bordered(
    gram: Float64[ndarray, "s s"], columns: Float64[ndarray, "t n"]
) -> Float64[ndarray, "t t"]:
    """The symmetric matrix with these last columns."""
    new = columns[len(gram) :]
    return np.block([[gram, columns[: len(gram)]], [columns[: len(gram)].T, (new + new.T) / 2]])


def _orthonormal(
    basis: Float64[ndarray, "m s"], columns: Float64[ndarray, "m n"]
) -> Float64[ndarray, "m q"]:
    """Columns that span what these have beyond the basis, to the share `DEPENDENT` of each.

    What is left of a column may be so little that rounding shows in it; the second time frees it.
    """
    sizes = np.linalg.norm(columns, axis=0)
    found = columns / np.where(sizes > 0, sizes, 1.0)
    for _ in range(2):
        rest = found - basis @ (basis.T @ found)
        found, triangle, _ = qr(rest, mode="economic", pivoting=True, check_finite=False)
        found = found[:, np.abs(np.diag(triangle)) > DEPENDENT]
    return found
