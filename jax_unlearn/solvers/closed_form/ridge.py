"""Reduced-rank ridge regression on the moments of a Linear's rows, and its iteration.

With P = Δᵀ, the moments G_f, C_f, e_f and G_p (`moments`), and the costs c_f, c_p and c_w of the
norms (`solve.costs_of`), the loss of one Linear is

    f(P) = c_f ‖R − X_f P‖ + c_p ‖X_p P‖ + c_w ‖P‖.

‖v‖ = min over η > 0 of ‖v‖²/(2η) + η/2, at η = ‖v‖. With fixed η's, and divided by c_f/(2η_f),
this is a ridge regression, whose minimum of rank r is known (DESIGN.md, section 6):

    H = G_f + a G_p + b I = L Lᵀ    a = c_p η_f / (c_f η_p)    b = c_w η_f / (c_f η_w)
    P = L⁻ᵀ · best rank r of L⁻¹ C_f = H⁻¹ C_f V Vᵀ

Setting the η's to the norms of P and repeating is a majorise-minimise algorithm: f never rises. It
may take a hundred factorisations of a D_in × D_in matrix (`stepwise`); `subspace` needs only a few.

With float64 moments, ‖R − X_f P‖ below 1e-7 ‖R‖ cannot be distinguished from zero, because of
cancellation. The η's are clipped above that, and the iteration ends before an iterate whose loss is
not lower.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.linalg import LinAlgError, blas, cholesky, eigh
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from jax_unlearn.solvers.closed_form.moments import Moments

# Smallest terms from which η's are computed, as shares of the loss; for the forget term, as a share
# of its value without a change.
FLOOR, FIT = 1e-8, 2e-7
# Smallest b, as a share of H's trace: so that the factorisation exists; and without a weight term,
# so that the change stays small enough for float32 where the rows do not determine it.
RIDGE, RIDGE_WITHOUT_WEIGHT = 2e-15, 1e-10
# From this size on, few eigenvectors are computed by the Lanczos method.
LANCZOS = 256
# Below this size several BLAS threads cost more than they save, especially on a busy machine.
ONE_THREAD = 512

Terms = Float64[ndarray, "3"]
# Initial terms if nothing is known about their sizes.
EQUAL_TERMS: Terms = np.ones(3)


class Change(NamedTuple):
    """P = left rightᵀ, left [m, q], right [k, q] with orthonormal columns; its weighted terms."""

    left: Float64[ndarray, "m q"]
    right: Float64[ndarray, "k q"]
    terms: Terms

    @property
    def total(self) -> float:
        return float(self.terms.sum())


def until_converged(changes: Iterable[Change], tolerance: float) -> Iterator[Change]:
    """Yield changes while the loss falls, up to the first relative fall of at most `tolerance`."""
    last = np.inf
    for change in changes:
        if not change.total < last:
            return
        yield change
        if last - change.total <= tolerance * change.total or change.total == 0:
            return
        last = change.total


def stepwise(moments: Moments, costs: Terms, rank: int, terms: Terms) -> Iterator[Change]:
    """The plain iteration from the η's of `terms`, with extrapolated steps (`extrapolated`)."""

    def best(terms: Terms) -> Change:
        factors = minimum(moments, rank, Ridge(moments, costs, terms))
        return Change(*factors, _terms(moments, costs, *factors))

    return extrapolated(best, partial(clip_terms, moments.square, costs), terms)


def extrapolated(
    best: Callable[[Terms], Change], clip: Callable[[Terms], Terms], terms: Terms
) -> Iterator[Change]:
    """The iteration from the η's of `terms`: `best` gives the best change for those of some terms.

    Where a norm goes to zero, the terms shrink by nearly the same factor in each step. Each step is
    therefore extrapolated on the logarithms of the terms, by a number of steps that doubles after
    each success; a step that does not lower the loss is undone.
    """
    accepted, last, times = terms, np.inf, 1.0
    while True:
        change = best(terms)
        if times > 1 and not change.total < last:
            terms, times = accepted, 1.0
            continue
        yield change
        accepted, last = change.terms, change.total
        before, after = (clip(one) for one in (terms, accepted))
        share = np.clip(after / before, 1e-3, 1e3)
        terms, times = accepted * share ** (times - 1), min(2 * times, 64.0)


def ridge_of(
    moments: Moments, costs: Terms, terms: Terms, without_weight: float = RIDGE_WITHOUT_WEIGHT
) -> tuple[float, float, float]:
    """(a, b, trace of G_f + a G_p) for the η's of a change with these terms.

    Args:
        moments: the moments.
        costs: c_f, c_p and c_w.
        terms: the weighted terms of the change.
        without_weight: smallest b if c_w = 0, as a share of the trace.
    """
    traces = float(moments.forget.trace()), float(moments.preserve.trace())
    return ridge_for(traces, moments.square, costs, terms, without_weight)


def ridge_for(
    traces: tuple[float, float],
    square: float,
    costs: Terms,
    terms: Terms,
    without_weight: float = RIDGE_WITHOUT_WEIGHT,
) -> tuple[float, float, float]:
    """As `ridge_of`, from the traces of G_f and G_p, and e_f = `square`."""
    known = clip_terms(square, costs, terms)
    a, b = map(float, (costs[1:] / costs[0]) ** 2 * known[0] / known[1:])
    trace = a * traces[1] + traces[0]
    return a, max(b, (RIDGE if costs[2] > 0 else without_weight) * trace), trace


class Ridge:
    """H = G_f + a G_p + b I = L Lᵀ for the η's of a change with these terms."""

    def __init__(
        self,
        moments: Moments,
        costs: Terms,
        terms: Terms,
        without_weight: float = RIDGE_WITHOUT_WEIGHT,
    ) -> None:
        self.a, self.b, self.trace = ridge_of(moments, costs, terms, without_weight)
        while True:
            h = self.a * moments.preserve
            h += moments.forget
            h[np.diag_indices_from(h)] += self.b
            try:
                # H is symmetric, so its transpose is H in LAPACK's order, without a copy.
                self.lower = cholesky(h.T, lower=True, overwrite_a=True, check_finite=False)
                return
            except LinAlgError:
                if not self.b < self.trace:
                    raise
                self.b *= 10

    def forward(self, x: Float64[ndarray, "m n"]) -> Float64[ndarray, "m n"]:
        """L⁻¹ x."""
        return blas.dtrsm(1.0, self.lower, x, lower=True)

    def backward(self, x: Float64[ndarray, "m n"]) -> Float64[ndarray, "m n"]:
        """L⁻ᵀ x."""
        return blas.dtrsm(1.0, self.lower, x, lower=True, trans_a=True)

    def inverse(self, x: Float64[ndarray, "m n"]) -> Float64[ndarray, "m n"]:
        """H⁻¹ x."""
        return self.backward(self.forward(x))

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """(l, u / l) with l H ≤ H' ≤ u H, where H' is the matrix for a and b; u / l may be ∞."""
        shares = [1.0, b / self.b]
        if a != self.a:
            shares.append(a / self.a if self.a else np.inf)
        low, high = min(shares), max(shares)
        return low, high / low if low > 0 else np.inf


def minimum(
    moments: Moments, rank: int, ridge: Ridge
) -> tuple[Float64[ndarray, "m q"], Float64[ndarray, "k q"]]:
    """(left, right) of the best P of rank `rank` for the ridge's η's.

    Columns are ordered by ascending singular value, unless `rank` is the full rank: then right = I.
    """
    whitened = ridge.forward(moments.cross)
    right = right_vectors(whitened, rank)
    return ridge.backward(whitened @ right), right


def right_vectors(x: Float64[ndarray, "m k"], rank: int) -> Float64[ndarray, "k q"]:
    """The right singular vectors of the `rank` largest singular values, in ascending order."""
    k = x.shape[1]
    if rank >= k:
        return np.eye(k)
    squares = x.T @ x
    if k >= LANCZOS and 10 * rank < k:
        try:
            start = np.random.default_rng(0).normal(size=k)
            values, vectors = eigsh(squares, k=rank, v0=start)
            return vectors[:, np.argsort(values)]
        except ArpackError:
            pass  # Lanczos does not converge if singular values are nearly equal; eigh does.
    return eigh(squares, subset_by_index=(k - rank, k - 1), check_finite=False)[1]


def _terms(
    moments: Moments, costs: Terms, left: Float64[ndarray, "m q"], right: Float64[ndarray, "k q"]
) -> Terms:
    missed = moments.square - 2 * np.vdot(moments.cross @ right, left)
    squares = [missed + np.vdot(left, moments.forget @ left)]
    squares += [np.vdot(left, moments.preserve @ left), np.vdot(left, left)]
    return costs * np.sqrt(np.maximum(squares, 0))


def clip_terms(square: float, costs: Terms, terms: Terms) -> Terms:
    """The terms from which the η's are computed, away from zero; `square` is e_f."""
    forget = max(terms[0], FIT * costs[0] * square**0.5)
    others = np.maximum(terms[1:], FLOOR * (forget + terms[1:].sum()))
    return np.array([forget, *others])


def threads(size: int) -> AbstractContextManager:
    """Limit BLAS to one thread for matrices of fewer than ONE_THREAD rows."""
    return _pools().limit(limits=1 if size < ONE_THREAD else None, user_api="blas")


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
