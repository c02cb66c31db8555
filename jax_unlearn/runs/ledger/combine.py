"""Fit the requests of a ledger: one by one and added up, or all at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool
from rich.console import Console

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import LinearProblem, compress, describe
from jax_unlearn.objective.loss import Problem, loss_alone, shapes
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fit_adapter import FittedAdapter, fit_concepts, fit_problem, in_rows
from jax_unlearn.runs.ledger.alone import (
    Ways,
    fit_alone,
    owned_concepts,
    owners,
    ways_of,
)
from jax_unlearn.runs.ledger.strengths import search
from jax_unlearn.runs.ledger.sums import added
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.result import Result, Row, history_of
from jax_unlearn.solvers.stand_in import sizes
from jax_unlearn.solvers.until_forgotten import ForgetSearch, fall_of

Named = Callable[[LoraAdapter], Sequence[int]]


class SumOfFits:
    """Fits each request alone and adds the changes up, each times its strength; called as
    `fit_adapter`.

    Args:
        rank_after: rank to which the sum is cut; by default that of the sum.
        named: for each request, how many of its images an adapter leaves named; without it all
            strengths are 1.
    """

    def __init__(self, rank_after: int | None = None, named: Named | None = None) -> None:
        self.rank_after, self.named = rank_after, named

    def __call__(
        self,
        extracted: Extracted,
        config: RunConfig,
        console: Console,
        stage: Stage | None,
        mesh: Mesh | None,
    ) -> FittedAdapter:
        """Fit; each image counts for the first request that is about it."""
        stand_in = config.objective.target == STAND_IN
        ways = {} if stand_in else ways_of(extracted, config)
        alone = fit_alone(extracted, config, ways, console)
        strengths = unmoved(extracted)

        def fit(strengths: Sequence[float]) -> LoraAdapter:
            own = [strengths[number] for number in alone.numbers]
            return added(alone.changes, own, self.rank_after)

        if self.named is None:
            adapter = fit(strengths)
        else:
            adapter, strengths = search(len(strengths), fit, self.named)
        if stand_in:
            concepts = owned_concepts(extracted, config)
            rows = in_rows(concepts)
            history = summed([one.history for one in alone.results], *sizes(concepts[0], adapter))
        else:
            fit_to, held_out = together(ways, extracted, config, strengths)
            rows = describe(fit_to)
            history = scored(adapter, fit_to if held_out is None else held_out, config)
        result = timed(adapter, history, alone.results)
        found = ForgetSearch(
            result, alone.lambda_forget, alone.trials, fall_of(result), alone.reached
        )
        return FittedAdapter(found, rows, strengths)


class JointFit:
    """Fits all requests at once, each its strength times the way to the target that it has alone;
    called as `fit_adapter`, with arguments of `SumOfFits`."""

    def __init__(self, named: Named | None = None) -> None:
        self.named = named

    def __call__(
        self,
        extracted: Extracted,
        config: RunConfig,
        console: Console,
        stage: Stage | None,
        mesh: Mesh | None,
    ) -> FittedAdapter:
        """Fit, with --rank and --alpha for each request as far as the Linears allow."""
        strengths = unmoved(extracted)
        if config.objective.target == STAND_IN:
            fitted = fit_concepts(owned_concepts(extracted, config), config, console)
            return replace(fitted, strengths=strengths)
        ways = ways_of(extracted, config)
        count = len({*owners(extracted).tolist()})

        def fit(strengths: Sequence[float]) -> FittedAdapter:
            fit_to, held_out = together(ways, extracted, config, strengths)
            most = min(min(shape) for shape in shapes(fit_to).values())
            rank, alpha = min(config.solver.rank * count, most), config.solver.alpha
            if alpha is not None:
                # The scale alpha / rank stays.
                alpha *= rank / config.solver.rank
            few = compress(fit_to), None if held_out is None else compress(held_out)
            # Without snapshots, which are of one fit.
            return fit_problem(*few, config.replace(rank=rank, alpha=alpha), console, None, mesh)

        if (named := self.named) is None:
            fitted = fit(strengths)
        else:
            fitted, strengths = search(
                len(strengths), fit, lambda one: named(one.found.result.adapter)
            )
        return replace(fitted, strengths=strengths)


def unmoved(extracted: Extracted) -> list[float]:
    """The strengths of requests that are moved to their targets and no further."""
    assert extracted.requests is not None
    return [1.0] * len(extracted.requests.ids)


def together(
    ways: Ways,
    extracted: Extracted,
    config: RunConfig,
    strengths: Sequence[float],
) -> tuple[Problem, Problem | None]:
    """The problem of all requests, and that to choose by; each request towards its own target, and
    by its strength as far.

    The square of the forget term is the sum of those that the requests have alone, so that no
    request counts less because it has fewer images or because there are others.
    """
    forget, preserve = extracted.train.forget, extracted.train.preserve
    owner = owners(extracted)
    size = np.ones(len(owner), np.float32)
    if config.solver.reduction == "mean":
        size = np.sqrt(len(owner) / np.bincount(owner)[owner]).astype(np.float32)
    far = np.asarray(strengths, np.float32)[owner][:, None]

    def problem(part: int, chosen: Bool[np.ndarray, " n"]) -> Problem:
        made = {}
        for name, way in ways.items():
            kept, weights = preserve.statistics[name][part], size[chosen][:, None]
            made[name] = LinearProblem(
                forget.taps[name].x[chosen] * weights,
                (far * way)[chosen] * weights,
                kept.equivalent_rows().x.astype(np.float32),
                float(chosen.sum()),
                float(max(1, kept.count)),
            )
        return made

    if forget.choosing is None:
        return problem(0, np.ones(len(owner), bool)), None
    return problem(0, ~forget.choosing), problem(1, forget.choosing)


def scored(adapter: LoraAdapter, problem: Problem, config: RunConfig) -> list[Row]:
    """The loss of a sum in the problem of all requests, before and after."""
    weights = config.solver.loss_weights()
    nothing = config.solver.init(problem)
    terms = [np.asarray(loss_alone(one, problem, weights)[1]) for one in (nothing, adapter)]
    return history_of(np.stack(terms), 0)


def summed(histories: Sequence[Sequence[Row]], preserve: float, weight: float) -> list[Row]:
    """The forget terms of requests that were fitted alone, and the other terms of their sum."""
    before, after = (
        float(np.sqrt(sum(rows[i]["forget"] ** 2 for rows in histories))) for i in (0, -1)
    )
    return history_of(np.array([[before, 0.0, 0.0], [after, preserve, weight]]), 0)


def timed(adapter: LoraAdapter, history: list[Row], parts: Sequence[Result]) -> Result:
    """The result of a sum, with the time of its parts."""
    stopped = next((one.stopped for one in parts if one.stopped), None)
    names = parts[0].seconds if parts else ()
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in parts) for name in names}
    return Result(adapter, history, 1, stopped, seconds)
