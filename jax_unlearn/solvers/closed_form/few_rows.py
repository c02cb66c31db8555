"""The closed form for many small problems that share their rows to preserve.

With G_p = Q Λ Qᵀ, decomposed once, and X̃ = X_f Q, a ridge regression of `ridge` needs no
factorisation of a D_in × D_in matrix, only one of as many rows as there are to forget:

    S = X̃ D X̃ᵀ    D = (a Λ + b I)⁻¹    Z = (I + S)⁻¹ R    P = Q D X̃ᵀ Z V Vᵀ

V are the leading right singular vectors of (S (I + S)⁻¹)^½ R (Woodbury's identity in `ridge`'s
solution). Z is also R − X_f P at full rank, so that no term of the loss cancels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray
from scipy.linalg import eigh

from jax_unlearn.features.gram import BLOCK
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.closed_form.moments import span
from jax_unlearn.solvers.closed_form.ridge import (
    Change,
    Terms,
    clip_terms,
    extrapolated,
    ridge_for,
    threads,
    until_converged,
)
from jax_unlearn.solvers.closed_form.solve import costs_for, descend, significant
from jax_unlearn.solvers.closed_form.subspace import INNER, SHARE
from jax_unlearn.solvers.config import SolverConfig

# A change Δ = b @ a, [E, q] and [q, D_in].
Factors = tuple[Float64[ndarray, "e q"], Float64[ndarray, "q d_in"]]


class ToForget(NamedTuple):
    """X_f [n, D_in] and R [n, E] of one problem."""

    rows: Float[ndarray, "n d_in"]
    residual: Float[ndarray, "n e"]


def solve_each(
    problems: Sequence[ToForget],
    preserve: Float64[ndarray, "d_in d_in"],
    preserve_rows: float,
    config: SolverConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Factors]:
    """Minimise the three-term loss of one Linear for each problem alone, as `solve` does.

    Args:
        problems: what each is to forget, of fewer rows than D_in.
        preserve: G_p, the Gram matrix of the rows that all of them preserve.
        preserve_rows: the number of those rows.
        config: rank, alpha, the λ's, reduction, iterations, tolerance, starts and seed.
        progress: called with the number of problems done.

    Returns:
        The changes, each with as many columns as it needs, at most the rank.

    Raises:
        UserError: rows are not finite.
    """
    values, vectors = eigh(preserve, driver="evd", check_finite=False)
    values = np.maximum(values, 0)
    found: list[Factors] = []
    for group in groups(problems):
        rows = np.concatenate([one.rows for one in group]).astype(np.float64) @ vectors
        ends = np.cumsum([len(one.rows) for one in group])
        changes = []
        # Products of few rows are faster with one thread.
        with threads(0):
            for own, problem in zip(np.split(rows, ends[:-1]), group, strict=True):
                counts = float(len(own)), preserve_rows
                changes.append(solve_one(own, problem.residual, values, counts, config))
                progress(len(found) + len(changes))
        ends = np.cumsum([left.shape[1] for left, _ in changes])
        lefts = vectors @ np.concatenate([left for left, _ in changes], axis=1)
        for left, (_, right) in zip(np.split(lefts, ends[:-1], axis=1), changes, strict=True):
            found.append((right, left.T))
    return found


def groups(problems: Sequence[ToForget]) -> Iterator[list[ToForget]]:
    """The problems in groups of about BLOCK rows together, in their order."""
    group, rows = list[ToForget](), 0
    for one in problems:
        group.append(one)
        rows += len(one.rows)
        if rows >= BLOCK:
            yield group
            group, rows = [], 0
    if group:
        yield group


def solve_one(
    rows: Float64[ndarray, "n d_in"],
    residual: Float[ndarray, "n e"],
    values: Float64[ndarray, " d_in"],
    counts: tuple[float, float],
    config: SolverConfig,
) -> tuple[Float64[ndarray, "d_in q"], Float64[ndarray, "e q"]]:
    """(left, right) with P = left rightᵀ, its left factor and the rows in the eigenvectors' basis.

    Args:
        rows: X̃.
        residual: R.
        values: Λ.
        counts: numbers of rows to forget and to preserve.
        config: see `solve_each`.

    Raises:
        UserError: rows are not finite.
    """
    square = float(np.einsum("ij,ij->", residual, residual, dtype=np.float64))
    if not np.isfinite([square, rows.sum(), values.sum()]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    outputs, inside = span(residual) if len(residual) < residual.shape[1] else (None, residual)
    few = FewRows(rows, inside.astype(np.float64), values)
    costs = costs_for(counts, config)
    shape = values.size, inside.shape[1]
    change = descend(shape, square, costs, config, lambda _: None, few.converged)[-1]
    left, right = significant(change)
    return left, right if outputs is None else outputs @ right


class FewRows:
    """The ridge regressions of one problem; X̃ [n, D_in], R [n, k] and Λ as in this module."""

    def __init__(
        self,
        rows: Float64[ndarray, "n d_in"],
        residual: Float64[ndarray, "n k"],
        values: Float64[ndarray, " d_in"],
    ) -> None:
        self.rows, self.residual, self.values = rows, residual, values
        self.square = float(np.vdot(residual, residual))
        self.traces = float(np.vdot(rows, rows)), float(values.sum())

    def converged(
        self, costs: Terms, rank: int, terms: Terms, tolerance: float
    ) -> Iterator[Change]:
        """The change at which the iteration from the η's of `terms` converges."""
        best = partial(self.best, costs, rank)
        steps = extrapolated(best, partial(clip_terms, self.square, costs), terms)
        yield list(until_converged(islice(steps, INNER), SHARE * tolerance))[-1]

    def best(self, costs: Terms, rank: int, terms: Terms) -> Change:
        """The best change of this rank for the η's of `terms`."""
        a, b, _ = ridge_for(self.traces, self.square, costs, terms)
        inverse = 1 / (a * self.values + b)
        scaled = self.rows * inverse
        sizes, axes = np.linalg.eigh(scaled @ self.rows.T)
        sizes = np.maximum(sizes, 0)
        along = axes.T @ self.residual
        gains = np.sqrt(sizes / (1 + sizes))[:, None] * along
        right = np.linalg.svd(gains, full_matrices=False)[2][:rank].T
        missed = axes @ ((along @ right) / (1 + sizes)[:, None])
        left = scaled.T @ missed
        beside = self.residual - (self.residual @ right) @ right.T
        squares = [
            np.vdot(beside, beside) + np.vdot(missed, missed),
            np.vdot(left, self.values[:, None] * left),
            np.vdot(left, left),
        ]
        return Change(left, right, costs * np.sqrt(squares))
