"""The closed-form solver: minimises the loss of `train` by a few ridge regressions of rank r.

`ridge` describes the iteration and why it never raises the loss; this module has the starting
points, the stopping rule, and the adapter made from the resulting change.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.loss import Problem, loss_alone
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.closed_form.lower_bound import lower_bound
from jax_unlearn.solvers.closed_form.moments import Moments, moments_of, square_of
from jax_unlearn.solvers.closed_form.ridge import (
    EQUAL_TERMS,
    Change,
    Terms,
    threads,
    until_converged,
)
from jax_unlearn.solvers.closed_form.subspace import Steps, Subspace, solve_fresh, solve_recycled
from jax_unlearn.solvers.config import SolverConfig, check
from jax_unlearn.solvers.result import Progress, Result, history_of

# Shares of the terms for a start near no change, tried if all others gain nothing.
NEAR_NO_CHANGE: Terms = np.array([1.0, 0.01, 0.01])
# Singular values below this share of the largest are dropped, being lost in float32.
NEGLIGIBLE = 1e-6


class Solved(NamedTuple):
    """The changes of one Linear by iteration: the first is no change, and the loss never rises."""

    changes: list[Change]
    inputs: Float64[ndarray, "d_in m"] | None
    outputs: Float64[ndarray, "e k"] | None
    lower_bound: float | None
    seconds: Float64[ndarray, "3"]

    def at(self, iteration: int) -> Change:
        return self.changes[min(iteration, len(self.changes) - 1)]


def solve(
    problem: Problem,
    config: SolverConfig,
    *,
    held_out: Problem | None = None,
    progress: Progress | None = None,
    bounded: bool = True,
    spaces: dict[str, Subspace] | None = None,
) -> Result:
    """Minimise the three-term loss over all changes of rank r, without epochs or a step size.

    Args:
        problem: a `LinearProblem` by each Linear's name. Linears are solved one at a time, since
            their losses add up. Use `moments.with_moments` to solve several settings.
        config: rank, alpha, the λ's, reduction, select, seed, and iterations, tolerance and starts.
            The same seed gives the same bytes on the same machine.
        held_out: rows to choose the adapter by, with `select="held_out"`.
        progress: called after each iteration with the number of iterations and the terms so far.
        bounded: also compute the lower bound, which takes about a third of the whole time.
        spaces: subspaces of earlier settings of this problem by the Linears' names, which are used
            and updated (`subspace.recycled`); they make many settings much faster than each alone.

    Returns:
        The adapter and its history. Row i of the history is iteration i of every Linear, or its
        last one; row 0 is no change. Both factors of the adapter have the same singular values;
        if the change needs less than rank r, the remaining rows of A are those of `config.init`
        and the columns of B zero, so that Adam can continue from it. `seconds` has the times of
        the moments (0 if cached), the iterations, the lower bound, and the total.

    Raises:
        UserError: a part is not linear, `select="held_out"` without held-out rows, a setting is
            out of range, or rows are not finite.
    """
    linears = _check(problem, config, held_out)
    if config.select == "held_out" and held_out is None:
        raise UserError("select 'held_out' needs held-out rows to choose by")
    begun = time.perf_counter()
    costs = {name: costs_of(linear, config) for name, linear in linears.items()}
    sizes = {name: costs[name][0] * square_of(linear) ** 0.5 for name, linear in linears.items()}
    tell = _teller({name: np.array([size, 0.0, 0.0]) for name, size in sizes.items()}, progress)
    solved = {}
    for name, linear in linears.items():
        of = solve_fresh if spaces is None else partial(solve_recycled, spaces, name)
        solved[name] = _solve(linear, costs[name], config, partial(tell, name), bounded, of)

    every, fresh = solved.values(), config.init(problem)
    length = max(len(one.changes) for one in every)
    terms = np.array([np.sum([one.at(i).terms for one in every], axis=0) for i in range(length)])
    chosen = length - 1
    if config.select == "held_out" and held_out is not None:
        weights = config.loss_weights()
        adapters = (_adapter(solved, fresh, i) for i in range(length))
        chosen = int(np.argmin([float(loss_alone(a, held_out, weights)[0]) for a in adapters]))
    laps = map(float, np.sum([one.seconds for one in every], axis=0))
    seconds = dict(zip(("statistics", "iterations", "lower_bound"), laps, strict=True))
    seconds["total"] = time.perf_counter() - begun
    bounds = [one.lower_bound for one in every if one.lower_bound is not None]
    bound = sum(bounds) if bounded else None
    return Result(
        _adapter(solved, fresh, chosen), history_of(terms, 0), chosen, None, seconds, bound
    )


def _solve(
    linear: LinearProblem,
    costs: Terms,
    config: SolverConfig,
    tell: Callable[[Terms], None],
    bounded: bool,
    steps_of: Callable[[Moments], Steps],
) -> Solved:
    laps = [time.perf_counter()]
    reduced = moments_of(linear)
    laps.append(time.perf_counter())
    shape, square = reduced.moments.cross.shape, reduced.moments.square
    changes = descend(shape, square, costs, config, tell, steps_of(reduced.moments))
    laps.append(time.perf_counter())
    bound = None
    if bounded:
        found = lower_bound(reduced, costs, changes[-1].right, config.seed)
        # The bound can exceed the loss by rounding only.
        bound = min(found, changes[-1].total)
    laps.append(time.perf_counter())
    return Solved(changes, reduced.inputs, reduced.outputs, bound, np.diff(laps))


def descend(
    shape: tuple[int, int],
    square: float,
    costs: Terms,
    config: SolverConfig,
    tell: Callable[[Terms], None],
    steps_of: Steps,
) -> list[Change]:
    """The changes from the best start: no change, then the lowest so far after each iteration.

    The first start assumes three equal terms; others draw them over six decades.

    Args:
        shape: (m, k), rows of the factors of a change.
        square: ‖R‖².
        costs: c_f, c_p and c_w.
        config: rank, iterations, tolerance, starts and seed.
        tell: called with the terms after each iteration.
        steps_of: the iteration from the η's of given terms.
    """
    (m, k), size = shape, costs[0] * square**0.5
    no_change = Change(np.zeros((m, 0)), np.zeros((k, 0)), np.array([size, 0.0, 0.0]))
    if not size > 0:
        return [no_change]

    def run(shares: Terms) -> list[Change]:
        changes = [no_change]
        steps = steps_of(costs, config.rank, shares * size, config.tolerance)
        for change in until_converged(islice(steps, config.iterations), config.tolerance):
            changes.append(_lower(change, changes[-1]))
            tell(changes[-1].terms)
        return changes

    drawn = np.random.default_rng(config.seed).uniform(-3, 3, size=(config.starts - 1, 3))
    with threads(m):
        best = min(map(run, [EQUAL_TERMS, *10**drawn]), key=lambda changes: changes[-1].total)
        return run(NEAR_NO_CHANGE) if best[-1] is no_change else best


def _lower(change: Change, other: Change) -> Change:
    return change if change.total < other.total else other


def _adapter(solved: Mapping[str, Solved], fresh: LoraAdapter, iteration: int) -> LoraAdapter:
    pairs = {
        name: _pair(linear, linear.at(iteration), fresh.pairs[name], fresh.scale)
        for name, linear in solved.items()
    }
    return LoraAdapter(pairs, alpha=fresh.alpha, rank=fresh.rank)


def _pair(linear: Solved, change: Change, fresh: LoraPair, scale: float) -> LoraPair:
    """Balanced factors of the change: Δ = scale · B A, each with the roots of singular values."""
    a, b = np.array(fresh.a), np.zeros(fresh.b.shape, np.float32)
    left, right = significant(change)
    kept, root = left.shape[1], abs(scale) ** -0.5
    left, right = root * left, np.sign(scale) * root * right
    a[:kept] = (left if linear.inputs is None else linear.inputs @ left).T
    b[:, :kept] = right if linear.outputs is None else linear.outputs @ right
    return LoraPair(a=a, b=b)


def significant(
    change: Change,
) -> tuple[Float64[ndarray, "m q"], Float64[ndarray, "k q"]]:
    """(left, right) of a change, balanced: each has the roots of its singular values.

    Without those that are lost in float32.
    """
    u, sigma, w = np.linalg.svd(change.left, full_matrices=False)
    kept = int(np.sum(sigma > NEGLIGIBLE * sigma.max(initial=0)))
    roots = np.sqrt(sigma[:kept])
    return roots * u[:, :kept], roots * (change.right @ w.T[:, :kept])


def _check(
    problem: Problem, config: SolverConfig, held_out: Problem | None
) -> dict[str, LinearProblem]:
    """The parts of the problem, after checking them and the settings.

    Raises:
        UserError: a part is not linear, or a setting is out of range.
    """
    check(config, problem, held_out)
    linears = {name: part for name, part in problem.items() if isinstance(part, LinearProblem)}
    if others := [name for name in problem if name not in linears]:
        raise UserError(
            f"{others[0]}: the closed form is for linear_fc2 (a GELU lies between linear_fc1 and "
            "the output); use --optimizer adam"
        )
    return linears


def costs_of(linear: LinearProblem, config: SolverConfig) -> Terms:
    """Costs of the norms: c_f = λ_f, c_p = λ_p, c_w = λ_w / |alpha / rank|.

    With the reduction `mean` the first two are divided by the root of their number of rows.
    """
    return costs_for((float(linear.forget_rows), float(linear.preserve_rows)), config)


def costs_for(rows: tuple[float, float], config: SolverConfig) -> Terms:
    """As `costs_of`, from the numbers of rows to forget and to preserve."""
    scale = 1.0 if config.alpha is None else config.alpha / config.rank
    costs = [config.lambda_forget, config.lambda_preserve, config.lambda_weight / abs(scale)]
    if config.reduction == "mean":
        # Without rows the term is zero for any cost.
        return costs / np.sqrt(np.maximum([*rows, 1.0], 1.0))
    return np.array(costs)


def _teller(now: dict[str, Terms], progress: Progress | None) -> Callable[[str, Terms], None]:
    """A callback that reports progress: the lowest terms so far, summed over all Linears."""
    done = count(1)

    def tell(name: str, terms: Terms) -> None:
        if terms.sum() < now[name].sum():
            now[name] = terms
        if progress:
            number = next(done)
            progress(number, history_of(np.sum([*now.values()], axis=0)[None], number)[0])

    return tell
