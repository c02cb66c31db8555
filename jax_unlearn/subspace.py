"""The changes whose left factor lies in a span: the iteration of `ridge` where it costs little.

A step of the iteration takes a factor of a D_in × D_in matrix, and there may be a hundred. But the
best P depends on a and b alone, and smoothly. So the iteration is carried to its end among the
changes whose left factor lies in the span of H⁻¹C_f V and its derivatives by a and b (H⁻¹G_p and
H⁻¹ times it), and only then is H factored again, for the a and b that it ended at. It begins with
what the last span ended with, so that f cannot rise; from two to four factors do (`refined`).

Other λ's are other a and b of the same problem: their changes lie in nearly the same span
(`recycled`). With the η's and the right factor V held, the majorant can fall by no more than

    c_f / (2 η_f) · tr(Yᵀ H⁻¹ Y),   Y = C_f V − H P,

and H ≥ min(1, a / a', b / b') H' for any factor that there is, that of H' at a' and b'. Where this
is too much, H'⁻¹Y is what the span lacks: a step of conjugate gradients with H' as preconditioner.
Only where a and b are far from all factors' is there a new one. That the right factor is the best
of all, and not only of those that the span allows, rests on more columns than the rank has at each
factor; a `solve` alone does not need that.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from jax_unlearn.moments import Moments
from jax_unlearn.ridge import (
    Change,
    Ridge,
    Terms,
    falling,
    floored,
    minimum,
    ridge_of,
    stepwise,
    threads,
)

# Within a span: at most so many iterations, to this share of the tolerance.
INNER, INNER_TOLERANCE = 1000, 1e-6
# Below this size factors cost less than what spares them.
FACTORED = 1024
# For other settings: columns beyond the rank, what condition a preconditioner may leave,
# and how many factors are kept, of 8 D_in² bytes each.
MORE, FAR, KEPT = 10, 30.0, 4
# A span of more than this share of all dimensions saves too little, and the next one begins anew.
WIDEST = 0.25

# Of costs, rank, terms to begin with and tolerance.
Steps = Callable[[Terms, int, Terms, float], Iterator[Change]]


class Lacking(NamedTuple):
    """How far the loss may fall, the condition that a factor leaves, the factor, and L'⁻¹Y."""

    excess: float
    condition: float
    ridge: Ridge
    whitened: Float64[ndarray, "m q"]


class Subspace:
    """The changes left · P' · rightᵀ, and what is asked of the moments for them.

    left [m, s] and right [k, t] have orthonormal columns; those of `right` span C_fᵀ left's, for
    what is outside of these is no use. Nothing is computed twice when they grow.
    """

    def __init__(self, moments: Moments) -> None:
        m, k = moments.cross.shape
        self.whole, self.ridges = moments, list[Ridge]()
        self.left, self.right = np.zeros((m, 0)), np.zeros((k, 0))
        # G_f left, G_p left and C_f right.
        self.forget = self.preserve = self.cross = self.left

    @property
    def size(self) -> int:
        return self.left.shape[1]

    def factor(self, costs: Terms, rank: int, terms: Terms, more: int = 0) -> None:
        """Extend by what the best change for the η's of these terms lies in, and keep its factor.

        more: columns of `right` beyond the rank.
        """
        ridge = Ridge(self.whole, costs, terms)
        left, right = minimum(self.whole, rank + more, ridge)
        self.ridges = [*self.ridges[1 - KEPT :], ridge]
        best = left if right.shape[1] == len(right) else left[:, -rank:]
        both = ridge.inverse(np.concatenate([self.whole.preserve @ best, best], axis=1))
        self.extend(np.concatenate([left, both], axis=1))

    def extend(self, columns: Float64[ndarray, "m n"]) -> None:
        added = _orthonormal(self.left, columns)
        outputs = _orthonormal(self.right, self.whole.cross.T @ added)
        self.left = np.concatenate([self.left, added], axis=1)
        self.right = np.concatenate([self.right, outputs], axis=1)
        self.forget = np.concatenate([self.forget, self.whole.forget @ added], axis=1)
        self.preserve = np.concatenate([self.preserve, self.whole.preserve @ added], axis=1)
        self.cross = np.concatenate([self.cross, self.whole.cross @ outputs], axis=1)
        left = self.left.T
        self.moments = Moments(
            left @ self.forget, left @ self.cross, self.whole.square, left @ self.preserve
        )

    def settled(self, costs: Terms, rank: int, terms: Terms, tolerance: float) -> Change:
        """The end of the iteration from these terms, in the terms of the span."""
        steps = islice(stepwise(self.moments, costs, rank, terms), INNER)
        with threads(self.size):
            return list(falling(steps, INNER_TOLERANCE * tolerance))[-1]

    def outside(self, change: Change) -> Change:
        """The same change as one of D_in × E."""
        return Change(self.left @ change.left, self.right @ change.right, change.terms)

    def lacking(self, change: Change, costs: Terms) -> Lacking:
        """What a step outside of the span could do to its end."""
        a, b, _ = ridge_of(self.whole, costs, change.terms)
        found = [(*ridge.bounds(a, b), ridge) for ridge in self.ridges]
        low, condition, ridge = min(found, key=lambda known: known[1])
        left = change.left
        missed = self.cross @ change.right - self.forget @ left
        missed -= a * (self.preserve @ left) + b * (self.left @ left)
        whitened = ridge.forward(missed)
        majorant = costs[0] ** 2 / (2 * floored(self.whole, costs, change.terms)[0])
        square = float(np.vdot(whitened, whitened))
        excess = majorant * square / low if low > 0 else np.inf
        return Lacking(excess, condition, ridge, whitened)


def alone(moments: Moments) -> Steps:
    """The iteration of one setting."""
    return partial(refined, moments)


def going_on(spaces: dict[str, Subspace], name: str, moments: Moments) -> Steps:
    """That of a setting after others, whose span is kept by this name, or will be."""
    if len(moments.forget) < FACTORED:
        return alone(moments)
    if name not in spaces or spaces[name].size > WIDEST * len(moments.forget):
        spaces[name] = Subspace(moments)
    return partial(recycled, spaces[name])


def refined(
    moments: Moments, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """A new factor after each end of the iteration in the span of all so far."""
    space = Subspace(moments)
    while True:
        space.factor(costs, rank, terms)
        inner = space.settled(costs, rank, terms, tolerance)
        yield space.outside(inner)
        terms = inner.terms


def recycled(
    space: Subspace, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """The same in the span that other settings left, until a step could win no more than that.

    Args:
        tolerance: relative to the loss.
    """
    if not space.size:
        space.factor(costs, rank, terms, MORE)
    while True:
        inner = space.settled(costs, rank, terms, tolerance)
        yield space.outside(inner)
        terms = inner.terms
        lacking = space.lacking(inner, costs)
        if lacking.excess <= tolerance * inner.total:
            return
        if lacking.condition > FAR:
            space.factor(costs, rank, terms, MORE)
        else:
            space.extend(lacking.ridge.backward(lacking.whitened))


def _orthonormal(
    basis: Float64[ndarray, "m s"], columns: Float64[ndarray, "m n"]
) -> Float64[ndarray, "m q"]:
    """Columns that span what these have beyond the basis, as many as there is room for.

    By one factorisation of both, whose columns are orthonormal even where nothing is left but
    rounding: the first are the basis itself, up to signs.
    """
    sizes = np.linalg.norm(columns, axis=0)
    both = np.concatenate([basis, columns / np.where(sizes > 0, sizes, 1.0)], axis=1)
    return np.linalg.qr(both)[0][:, basis.shape[1] :]
