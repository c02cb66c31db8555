"""Reduced-rank ridge regression on the moments of a Linear's rows, and its iteration.

With P = Δᵀ, the moments G_f, C_f, e_f and G_p (`moments`), and what the norms cost, c_f, c_p and
c_w (`solve.costs_of`), the loss of one Linear is

    f(P) = c_f ‖R − X_f P‖ + c_p ‖X_p P‖ + c_w ‖P‖.

‖v‖ = min over η > 0 of ‖v‖²/(2η) + η/2, at η = ‖v‖. With the η's held, and all divided by
c_f/(2η_f), that is a ridge regression, whose minimum of rank r is known (DESIGN.md, section 6):

    H = G_f + a G_p + b I = L Lᵀ    a = c_p η_f / (c_f η_p)    b = c_w η_f / (c_f η_w)
    P = L⁻ᵀ · best rank r of L⁻¹ C_f = H⁻¹ C_f V Vᵀ

Setting the η's to the norms of P and repeating majorises and minimises: f never rises. That may
take a hundred factors of a D_in × D_in matrix (`stepwise`). But P depends on a and b alone, and
smoothly: after each such step the iteration is carried to its end among the changes whose left
factor lies in the span of H⁻¹C_f V and its derivatives by a and b (H⁻¹G_p and H⁻¹ times it), those
of earlier steps included (`refined`). There it costs little, and begins with that very step, so
that f cannot rise; from two to four steps do.

In float64 moments ‖R − X_f P‖ below 1e-7 ‖R‖ cannot be told from zero, for two numbers cancel. No η
is taken below that, and an iterate whose loss is not lower is not taken and ends the iteration.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.linalg import LinAlgError, blas, cholesky, eigh
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from jax_unlearn.moments import Moments

# The least terms that η's are taken from: of the loss, and for the forget term of no change's.
FLOOR, FIT = 1e-8, 2e-7
# The least b, as a share of H's trace: for a factor to exist; and without a weight term, for the
# change to stay so small that float32 can carry it where the rows do not determine it.
RIDGE, RIDGE_ALONE = 2e-15, 1e-10
# Within a span: at most so many iterations, to this share of the tolerance.
INNER, INNER_TOLERANCE = 1000, 1e-6
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


def falling(changes: Iterable[Change], tolerance: float) -> Iterator[Change]:
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
        factors = _minimum(moments, rank, Ridge(moments, costs, terms))
        change = Change(*factors, _terms(moments, costs, *factors))
        if times > 1 and not change.total < last:
            terms, times = settled, 1.0
            continue
        yield change
        settled, last = change.terms, change.total
        before, after = (_floored(moments, costs, one) for one in (terms, settled))
        share = np.clip(after / before, 1e-3, 1e3)
        terms, times = settled * share ** (times - 1), min(2 * times, 64.0)


def refined(
    moments: Moments, costs: Terms, rank: int, terms: Terms, tolerance: float
) -> Iterator[Change]:
    """The same, each step carried to the end of the iteration in the span of all so far."""
    span = np.zeros((len(moments.forget), 0))
    while True:
        ridge = Ridge(moments, costs, terms)
        left, _ = _minimum(moments, rank, ridge)
        span = _extended(span, moments, ridge, left)
        outputs, small = _within(moments, span)
        inner = islice(stepwise(small, costs, rank, terms), INNER)
        with threads(span.shape[1]):
            end = list(falling(inner, INNER_TOLERANCE * tolerance))[-1]
        yield Change(span @ end.left, outputs @ end.right, end.terms)
        terms = end.terms


class Ridge:
    """H = G_f + a G_p + b I = L Lᵀ for the η's of a change with these terms."""

    def __init__(
        self, moments: Moments, costs: Terms, terms: Terms, alone: float = RIDGE_ALONE
    ) -> None:
        floored = _floored(moments, costs, terms)
        self.a, b = (costs[1:] / costs[0]) ** 2 * floored[0] / floored[1:]
        self.trace = float(self.a * moments.preserve.trace() + moments.forget.trace())
        self.b = max(b, (RIDGE if costs[2] > 0 else alone) * self.trace)
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


def _minimum(
    moments: Moments, rank: int, ridge: Ridge
) -> tuple[Float64[ndarray, "m q"], Float64[ndarray, "k q"]]:
    """(left, right) of the best P of the rank for the ridge's η's."""
    whitened = ridge.forward(moments.cross)
    right = _leading(whitened, rank)
    return ridge.backward(whitened @ right), right


def _leading(x: Float64[ndarray, "m k"], rank: int) -> Float64[ndarray, "k q"]:
    """The right singular vectors of the largest singular values, orthonormal."""
    k = x.shape[1]
    if rank >= k:
        return np.eye(k)
    squares = x.T @ x
    if k >= LANCZOS and 10 * rank < k:
        try:
            start = np.random.default_rng(0).normal(size=k)
            return eigsh(squares, k=rank, v0=start)[1]
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


def _floored(moments: Moments, costs: Terms, terms: Terms) -> Terms:
    forget = max(terms[0], FIT * costs[0] * moments.square**0.5)
    others = np.maximum(terms[1:], FLOOR * (forget + terms[1:].sum()))
    return np.array([forget, *others])


def _extended(
    span: Float64[ndarray, "m p"],
    moments: Moments,
    ridge: Ridge,
    left: Float64[ndarray, "m q"],
) -> Float64[ndarray, "m s"]:
    """Orthonormal columns: the span, a left factor and its derivatives by a and b."""
    both = np.concatenate([moments.preserve @ left, left], axis=1)
    added = np.concatenate([left, ridge.backward(ridge.forward(both))], axis=1)
    sizes = np.linalg.norm(added, axis=0)
    return np.linalg.qr(np.concatenate([span, added / np.where(sizes > 0, sizes, 1.0)], axis=1))[0]


def _within(
    moments: Moments, span: Float64[ndarray, "m s"]
) -> tuple[Float64[ndarray, "k t"], Moments]:
    """(Outputs, moments) of the changes span P' outputsᵀ: what is outside of these is no use."""
    cross = span.T @ moments.cross
    outputs = np.linalg.qr(cross.T)[0]
    forget, preserve = (span.T @ g @ span for g in (moments.forget, moments.preserve))
    return outputs, Moments(forget, cross @ outputs, moments.square, preserve)


def threads(size: int) -> AbstractContextManager:
    """One thread for matrices of less than `ONE_THREAD` rows."""
    return _pools().limit(limits=1 if size < ONE_THREAD else None, user_api="blas")


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
