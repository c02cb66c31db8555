"""Reduced-rank ridge regression on the moments of a Linear's rows, and its iteration.

With P = Δᵀ, the moments G_f, C_f, e_f and G_p (`moments`), and what the norms cost, c_f, c_p and
c_w (`solve.costs_of`), the loss of one Linear is

    f(P) = c_f ‖R − X_f P‖ + c_p ‖X_p P‖ + c_w ‖P‖.

‖v‖ = min over η > 0 of ‖v‖²/(2η) + η/2, at η = ‖v‖. With the η's held, and all divided by
c_f/(2η_f), that is a ridge regression, whose minimum of rank r is known (DESIGN.md, section 6):

    H = G_f + a G_p + b I = L Lᵀ    a = c_p η_f / (c_f η_p)    b = c_w η_f / (c_f η_w)
    P = L⁻ᵀ · best rank r of L⁻¹ C_f = H⁻¹ C_f V Vᵀ

Setting the η's to the norms of P and repeating majorises and minimises: f never rises. That may
take a hundred factors of a D_in × D_in matrix (`stepwise`); `subspace` says how a few do.

In float64 moments ‖R − X_f P‖ below 1e-7 ‖R‖ cannot be told from zero, for two numbers cancel. No η
is taken below that, and an iterate whose loss is not lower is not taken and ends the iteration.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.linalg import LinAlgError, blas, cholesky, eigh
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from jax_unlearn.solvers.closed_form.moments import Moments

# The least terms that η's are taken from: of the loss, and for the forget term of no change's.
FLOOR, FIT = 1e-8, 2e-7
# The least b, as a share of H's trace: for a factor to exist; and without a weight term, for the
# change to stay so small that float32 can carry it where the rows do not determine it.
RIDGE, RIDGE_ALONE = 2e-15, 1e-10
# From this size on, a few eigenvectors are found by Lanczos' method.
LANCZOS = 256
# Below this size BLAS' threads cost more than they save, and much more on a busy machine.
ONE_THREAD = 512

Terms = Float64[ndarray, "3"]
# A start's terms where nothing is known of them.
ALIKE: Terms = np.ones(3)


class Change(NamedTuple):
    """P = left rightᵀ, left [m, q], right [k, q] with orthonormal columns; its weighted terms."""

    left: Float64[ndarray, "m q"]
    right: Float64[ndarray, "k q"]
    terms: Terms

    @property
    def total(self) -> float:
        return float(self.terms.sum())


def until_converged(changes: Iterable[Change], tolerance: float) -> Iterator[Change]:
    """As long as the loss falls, to zero or up to the first fall by less than `tolerance` of it."""
    last = np.inf
    for change in changes:
        if not change.total < last:
            return
        yield change
        if last - change.total <= tolerance * change.total or change.total == 0:
            return
        last = change.total


def stepwise(moments: Moments, costs: Terms, rank: int, terms: Terms) -> Iterator[Change]:
    """The plain iteration, from the η's of these terms, with longer and longer steps.

    Where a norm goes to zero the terms shrink by nearly the same share each time. So each step is
    repeated in advance, twice as often after each success, on the terms' logarithms; a step that
    does not lower the loss is taken back.
    """
    settled, last, times = terms, np.inf, 1.0
    while True:
        factors = minimum(moments, rank, Ridge(moments, costs, terms))
        change = Change(*factors, _terms(moments, costs, *factors))
        if times > 1 and not change.total < last:
            terms, times = settled, 1.0
            continue
        yield change
        settled, last = change.terms, change.total
        before, after = (clip_terms(moments, costs, one) for one in (terms, settled))
        share = np.clip(after / before, 1e-3, 1e3)
        terms, times = settled * share ** (times - 1), min(2 * times, 64.0)


def ridge_of(
    moments: Moments, costs: Terms, terms: Terms, alone: float = RIDGE_ALONE
) -> tuple[float, float, float]:
    """(a, b, the trace of G_f + a G_p) for the η's of a change with these terms.

    alone: the least b without a weight term, as a share of the trace.
    """
    known = clip_terms(moments, costs, terms)
    a, b = map(float, (costs[1:] / costs[0]) ** 2 * known[0] / known[1:])
    trace = float(a * moments.preserve.trace() + moments.forget.trace())
    return a, max(b, (RIDGE if costs[2] > 0 else alone) * trace), trace


class Ridge:
    """H = G_f + a G_p + b I = L Lᵀ for the η's of a change with these terms."""

    def __init__(
        self, moments: Moments, costs: Terms, terms: Terms, alone: float = RIDGE_ALONE
    ) -> None:
        self.a, self.b, self.trace = ridge_of(moments, costs, terms, alone)
        while True:
            h = self.a * moments.preserve
            h += moments.forget
            h[np.diag_indices_from(h)] += self.b
            try:
                # Symmetric, so that its transpose is H in LAPACK's order: no copy.
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
        """(l, u / l) with l H ≤ H' ≤ u H, where H' is that of a and b; u / l may be ∞."""
        shares = [1.0, b / self.b]
        if a != self.a:
            shares.append(a / self.a if self.a else np.inf)
        low, high = min(shares), max(shares)
        return low, high / low if low > 0 else np.inf


def minimum(
    moments: Moments, rank: int, ridge: Ridge
) -> tuple[Float64[ndarray, "m q"], Float64[ndarray, "k q"]]:
    """(left, right) of the best P of the rank for the ridge's η's.

    Columns are in the order of their singular values, the largest last, but where right is I: where
    the rank leaves nothing out.
    """
    whitened = ridge.forward(moments.cross)
    right = _leading(whitened, rank)
    return ridge.backward(whitened @ right), right


def _leading(x: Float64[ndarray, "m k"], rank: int) -> Float64[ndarray, "k q"]:
    """The right singular vectors of the largest singular values, the largest last."""
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
            pass  # It did not converge, as where singular values are alike; what follows does.
    return eigh(squares, subset_by_index=(k - rank, k - 1), check_finite=False)[1]


def _terms(
    moments: Moments, costs: Terms, left: Float64[ndarray, "m q"], right: Float64[ndarray, "k q"]
) -> Terms:
    missed = moments.square - 2 * np.vdot(moments.cross @ right, left)
    squares = [missed + np.vdot(left, moments.forget @ left)]
    squares += [np.vdot(left, moments.preserve @ left), np.vdot(left, left)]
    return costs * np.sqrt(np.maximum(squares, 0))


def clip_terms(moments: Moments, costs: Terms, terms: Terms) -> Terms:
    forget = max(terms[0], FIT * costs[0] * moments.square**0.5)
    others = np.maximum(terms[1:], FLOOR * (forget + terms[1:].sum()))
    return np.array([forget, *others])


def threads(size: int) -> AbstractContextManager:
    """One thread for matrices of less than `ONE_THREAD` rows."""
    return _pools().limit(limits=1 if size < ONE_THREAD else None, user_api="blas")


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
