"""Fit the requests of a ledger: one by one and added up, or all at once."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float64
from rich.console import Console

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem, compress, describe
from jax_unlearn.objective.loss import Problem, loss, shapes
from jax_unlearn.objective.problem import targets_of
from jax_unlearn.runs.fit_adapter import FittedAdapter, fit_adapter, fit_problem
from jax_unlearn.runs.ledger.requests import Divided
from jax_unlearn.runs.ledger.source import only
from jax_unlearn.runs.ledger.strengths import search
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.result import Result, history_of
from jax_unlearn.solvers.until_forgotten import ForgetSearch, fall_of

Combine = Literal["sum", "joint"]
Named = Callable[[LoraAdapter], Sequence[int]]
Factors = tuple[Float64[np.ndarray, "e r"], Float64[np.ndarray, "r d"]]


class SumOfFits:
    """Fits each request alone and adds the changes up, each times its strength; called as
    `fit_adapter`.

    Args:
        divided: the images of the requests.
        rank_after: rank to which the sum is cut; by default that of the sum.
        named: for each request, how many of its images an adapter leaves named; without it all
            strengths are 1.

    Attributes:
        strengths: how far each request was moved, as a multiple of the way to its target; after a
            call.
    """

    def __init__(
        self, divided: Divided, rank_after: int | None = None, named: Named | None = None
    ) -> None:
        self.divided, self.rank_after, self.named = divided, rank_after, named
        self.strengths = [1.0] * len(divided.requests)

    def __call__(
        self,
        extracted: Extracted,
        config: RunConfig,
        console: Console,
        stage: Stage | None,
        mesh: Mesh | None,
    ) -> FittedAdapter:
        """Fit; each image counts for the first request that is about it."""
        parts = alone(self.divided, extracted, config)
        # Without snapshots and a bound, which are of one fit.
        found = [fit_adapter(one, config, console, None, mesh, False).found for _, _, one in parts]

        def fit(strengths: Sequence[float]) -> LoraAdapter:
            return added(
                [times(one.result.adapter, strengths[number])
                 for one, (number, _, _) in zip(found, parts, strict=True)],
                self.rank_after,
            )  # fmt: skip

        if self.named is None:
            adapter = fit(self.strengths)
        else:
            adapter, self.strengths = search(len(self.strengths), fit, self.named)
        fit_to, held_out = together(parts, extracted, config, self.strengths)
        seen = fit_to if held_out is None else held_out
        result = scored(adapter, seen, config, [one.result for one in found])
        strongest = max(one.lambda_forget for one in found)
        trials = sum(one.trials for one in found)
        reached = all(one.reached for one in found)
        done = ForgetSearch(result, strongest, trials, fall_of(result), reached)
        return FittedAdapter(done, describe(fit_to))


class JointFit:
    """Fits all requests at once, each its strength times the way to the target that it has alone;
    called as `fit_adapter`, with arguments and attributes of `SumOfFits`."""

    def __init__(self, divided: Divided, named: Named | None = None) -> None:
        self.divided, self.named = divided, named
        self.strengths = [1.0] * len(divided.requests)

    def __call__(
        self,
        extracted: Extracted,
        config: RunConfig,
        console: Console,
        stage: Stage | None,
        mesh: Mesh | None,
    ) -> FittedAdapter:
        """Fit, with --rank for each request as far as the Linears allow."""
        parts = alone(self.divided, extracted, config)

        def fit(strengths: Sequence[float]) -> FittedAdapter:
            fit_to, held_out = together(parts, extracted, config, strengths)
            most = min(min(shape) for shape in shapes(fit_to).values())
            rank = min(config.solver.rank * len(parts), most)
            # Without snapshots, which are of one fit.
            return fit_problem(fit_to, held_out, config.replace(rank=rank), console, None, mesh)

        if (named := self.named) is None:
            return fit(self.strengths)
        fitted, self.strengths = search(
            len(self.strengths), fit, lambda one: named(one.found.result.adapter)
        )
        return fitted


LedgerFit = SumOfFits | JointFit
Parts = Sequence[tuple[int, Bool[np.ndarray, " n"], Extracted]]


def alone(divided: Divided, extracted: Extracted, config: RunConfig) -> Parts:
    """For each request that owns training images, its number, which they are, and the features for
    them."""
    owner = divided.owner[~divided.forget.held_out]
    masks = {number: owner == number for number in sorted({*owner.tolist()})}
    return [(number, own, only(extracted, own, config)) for number, own in masks.items()]


def times(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    """The change times a factor."""
    return LoraAdapter(adapter.pairs, adapter.alpha * factor, adapter.rank)


def together(
    parts: Parts, extracted: Extracted, config: RunConfig, strengths: Sequence[float]
) -> tuple[Problem, Problem | None]:
    """The problem of all requests, and that to choose by; each request towards its own target, and
    by its strength as far.

    The square of the forget term is the sum of those that the requests have alone, so that no
    request counts less because it has fewer images or because there are others.
    """
    forget, preserve = extracted.train.forget, extracted.train.preserve
    count = len(forget.files)
    residual: dict[str, Float[np.ndarray, "n e"]] = {}
    size = np.ones(count, np.float32)
    for number, own, one in parts:
        if config.solver.reduction == "mean":
            size[own] = np.sqrt(count / own.sum())
        for projector, target in targets_of(one, config.objective, config.solver.seed):
            last = projector.last
            output = last.output(forget.taps[last.name].x[own])
            rows = residual.setdefault(last.name, np.zeros((count, last.shape[0]), np.float32))
            way = target.rows(output, np.arange(len(output))) - output
            rows[own] = np.float32(strengths[number]) * way

    def problem(part: int, chosen: Bool[np.ndarray, " n"]) -> Problem:
        made = {}
        for name, rows in residual.items():
            kept, weights = preserve.statistics[name][part], size[chosen][:, None]
            made[name] = LinearProblem(
                forget.taps[name].x[chosen] * weights,
                rows[chosen] * weights,
                kept.equivalent_rows().x.astype(np.float32),
                float(chosen.sum()),
                float(max(1, kept.count)),
            )
        return compress(made)

    if forget.choosing is None:
        return problem(0, np.ones(count, bool)), None
    return problem(0, ~forget.choosing), problem(1, forget.choosing)


def scored(
    adapter: LoraAdapter, problem: Problem, config: RunConfig, parts: Sequence[Result]
) -> Result:
    """The loss of a sum in the problem of all requests, before and after; the time of its parts."""
    weights = config.solver.loss_weights()
    nothing = config.solver.init(problem)
    terms = [np.asarray(loss(one, problem, weights)[1]) for one in (nothing, adapter)]
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in parts) for name in parts[0].seconds}
    stopped = next((one.stopped for one in parts if one.stopped), None)
    return Result(adapter, history_of(np.stack(terms), 0), 1, stopped, seconds)


def added(adapters: Sequence[LoraAdapter], rank_after: int | None = None) -> LoraAdapter:
    """The sum of low-rank changes: their factors side by side, or cut to a rank by an SVD.

    A sum of more ranks than the Linears allow is written with as many as they do, which loses
    nothing.

    Args:
        adapters: changes of the same Linears.
        rank_after: the largest rank of the sum.
    """
    factors = {name: stacked([(a.pairs[name], a.scale) for a in adapters])
               for name in adapters[0].pairs}  # fmt: skip
    full = sum(one.rank for one in adapters)
    most = max(min(b.shape[0], a.shape[1]) for b, a in factors.values())
    rank = min(full, most, rank_after or full)
    if rank < full:
        factors = {name: cut(b, a, rank) for name, (b, a) in factors.items()}
    pairs = {n: LoraPair(a.astype(np.float32), b.astype(np.float32))
             for n, (b, a) in factors.items()}  # fmt: skip
    return LoraAdapter(pairs, alpha=float(rank), rank=rank)


def stacked(pairs: Sequence[tuple[LoraPair, float]]) -> Factors:
    """Factors of the sum of scale · b @ a, in the given order."""
    assert all(pair.bias is None for pair, _ in pairs)
    b = [scale * np.asarray(pair.b, np.float64) for pair, scale in pairs]
    return np.concatenate(b, axis=1), np.concatenate(
        [np.asarray(pair.a, np.float64) for pair, _ in pairs]
    )


def cut(b: np.ndarray, a: np.ndarray, rank: int) -> Factors:
    """The nearest product of a rank to b @ a; missing directions are zeros."""
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    u, sizes, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    kept = min(rank, len(sizes))
    root = np.sqrt(sizes[:kept])
    new_b, new_a = np.zeros((len(b), rank)), np.zeros((rank, a.shape[1]))
    new_b[:, :kept] = left @ u[:, :kept] * root
    new_a[:kept] = root[:, None] * (v[:kept] @ right.T)
    return new_b, new_a
