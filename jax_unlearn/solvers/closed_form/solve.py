"""The closed-form solver: the loss of `train`, minimised by a few ridge regressions of rank r.

What is iterated, and why that never raises the loss, is told in `ridge`; here are the starts, when
to stop, and the adapter of the change that is found.
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
from jax_unlearn.objective.loss import Problem, loss, shapes
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.closed_form.lower_bound import lower_bound
from jax_unlearn.solvers.closed_form.moments import Moments, moments_of, square_of
from jax_unlearn.solvers.closed_form.ridge import ALIKE, Change, Terms, threads, until_converged
from jax_unlearn.solvers.closed_form.subspace import Steps, Subspace, alone, solve_recycled
from jax_unlearn.solvers.config import SolverConfig, check
from jax_unlearn.solvers.result import Progress, Result, history_of

# A start near no change, if that is all it came to: what share each term has.
SMALL: Terms = np.array([1.0, 0.01, 0.01])
# A singular value below this share of the largest is none: float32 would not show it.
NOTHING = 1e-6


class Solved(NamedTuple):
    """The changes of one Linear: first none; none has a higher loss than the one before."""

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
        problem: a `LinearProblem` by each Linear's name. Each is solved alone: their losses add up.
            `moments.with_moments` makes one for many settings.
        config: rank, alpha, the λ's, reduction, select, seed, and iterations, tolerance and starts.
            The same seed gives the same bytes on the same machine.
        held_out: rows to choose the adapter by, with `select="held_out"`.
        progress: called after each iteration with their number and the terms so far.
        bounded: also find the lower bound, which takes about a third of the whole time.
        spaces: what earlier settings of this problem left, by the Linears' names, to go on from
            (`subspace.recycled`): many take far less than each alone. Filled here.

    A row of the history is an iteration of all Linears: one that has ended stays as it is. Row 0 is
    no change. Both factors of the adapter have the same singular values; where the change needs
    less than rank r, A has rows of `config.init` and B has zeros, so that Adam could go on.
    `seconds` has the moments of the rows (no time where they are kept), the iterations, the lower
    bound, and all.

    Raises:
        UserError: a part that is not linear, `select="held_out"` without held-out rows, settings
            that cannot be meant, or rows that are not finite.
    """
    linears = _check(problem, config)
    if config.select == "held_out" and held_out is None:
        raise UserError("select 'held_out' needs held-out rows to choose by")
    begun = time.perf_counter()
    costs = {name: costs_of(linear, config) for name, linear in linears.items()}
    sizes = {name: costs[name][0] * square_of(linear) ** 0.5 for name, linear in linears.items()}
    tell = _teller({name: np.array([size, 0.0, 0.0]) for name, size in sizes.items()}, progress)
    solved = {}
    for name, linear in linears.items():
        of = alone if spaces is None else partial(solve_recycled, spaces, name)
        solved[name] = _solve(linear, costs[name], config, partial(tell, name), bounded, of)

    paths, fresh = solved.values(), config.init(problem)
    length = max(len(path.changes) for path in paths)
    terms = np.array([np.sum([path.at(i).terms for path in paths], axis=0) for i in range(length)])
    chosen = length - 1
    if config.select == "held_out" and held_out is not None:
        weights = config.loss_weights()
        adapters = (_adapter(solved, fresh, i) for i in range(length))
        chosen = int(np.argmin([float(loss(a, held_out, weights)[0]) for a in adapters]))
    laps = map(float, np.sum([path.seconds for path in paths], axis=0))
    seconds = dict(zip(("statistics", "iterations", "lower_bound"), laps, strict=True))
    seconds["total"] = time.perf_counter() - begun
    bounds = [path.lower_bound for path in paths if path.lower_bound is not None]
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
    changes = descend(reduced.moments, costs, config, tell, steps_of(reduced.moments))
    laps.append(time.perf_counter())
    bound = None
    if bounded:
        found = lower_bound(reduced, costs, changes[-1].right, config.seed)
        # What is left between two equal numbers is rounding.
        bound = min(found, changes[-1].total)
    laps.append(time.perf_counter())
    return Solved(changes, reduced.inputs, reduced.outputs, bound, np.diff(laps))


def descend(
    moments: Moments,
    costs: Terms,
    config: SolverConfig,
    tell: Callable[[Terms], None],
    steps_of: Steps,
) -> list[Change]:
    """No change, and the lowest so far after each iteration, from the best start.

    The first start takes the three terms to be alike; others draw them, over six decades.

    Args:
        costs: c_f, c_p and c_w.
        tell: called with the terms after each iteration.
        steps_of: the iteration from the η's of a change with such terms.
    """
    (m, k), size = moments.cross.shape, costs[0] * moments.square**0.5
    nothing = Change(np.zeros((m, 0)), np.zeros((k, 0)), np.array([size, 0.0, 0.0]))
    if not size > 0:
        return [nothing]

    def run(shares: Terms) -> list[Change]:
        changes = [nothing]
        steps = steps_of(costs, config.rank, shares * size, config.tolerance)
        for change in until_converged(islice(steps, config.iterations), config.tolerance):
            changes.append(_lower(change, changes[-1]))
            tell(changes[-1].terms)
        return changes

    drawn = np.random.default_rng(config.seed).uniform(-3, 3, size=(config.starts - 1, 3))
    with threads(m):
        best = min(map(run, [ALIKE, *10**drawn]), key=lambda changes: changes[-1].total)
        return run(SMALL) if best[-1] is nothing else best


def _lower(change: Change, other: Change) -> Change:
    return change if change.total < other.total else other


def _adapter(solved: Mapping[str, Solved], fresh: LoraAdapter, iteration: int) -> LoraAdapter:
    pairs = {
        name: _pair(linear, linear.at(iteration), fresh.pairs[name], fresh.scale)
        for name, linear in solved.items()
    }
    return LoraAdapter(pairs, alpha=fresh.alpha, rank=fresh.rank)


def _pair(linear: Solved, change: Change, fresh: LoraPair, scale: float) -> LoraPair:
    """Balanced factors of the change: Δ = scale · B A, with the singular values' roots in both."""
    a, b = np.array(fresh.a), np.zeros(fresh.b.shape, np.float32)
    u, sigma, w = np.linalg.svd(change.left, full_matrices=False)
    kept = int(np.sum(sigma > NOTHING * sigma.max(initial=0)))
    roots = np.sqrt(sigma[:kept] / abs(scale))
    left, right = roots * u[:, :kept], np.sign(scale) * roots * (change.right @ w.T[:, :kept])
    a[:kept] = (left if linear.inputs is None else linear.inputs @ left).T
    b[:, :kept] = right if linear.outputs is None else linear.outputs @ right
    return LoraPair(a=a, b=b)


def _check(problem: Problem, config: SolverConfig) -> dict[str, LinearProblem]:
    """The parts, if they and the settings are what the closed form can do."""
    check(config, shapes(problem))
    for name in ("iterations", "tolerance", "lambda_forget", "lambda_preserve", "lambda_weight"):
        if not 0 <= (value := getattr(config, name)) < np.inf:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: must be finite and not negative")
    if config.starts < 1:
        raise UserError(f"--starts {config.starts}: must be at least 1")
    if config.alpha == 0:
        raise UserError("--alpha 0: no change has a scale of zero")
    linears = {name: part for name, part in problem.items() if isinstance(part, LinearProblem)}
    if others := [name for name in problem if name not in linears]:
        raise UserError(
            f"{others[0]}: the closed form is for linear_fc2 (a GELU lies between linear_fc1 and "
            "the output); use --optimizer adam"
        )
    return linears


def costs_of(linear: LinearProblem, config: SolverConfig) -> Terms:
    """What the norms cost: c_f = λ_f, c_p = λ_p, c_w = λ_w / |alpha / rank|.

    With the reduction `mean` the first two are over the roots of their rows.
    """
    scale = 1.0 if config.alpha is None else config.alpha / config.rank
    costs = [config.lambda_forget, config.lambda_preserve, config.lambda_weight / abs(scale)]
    if config.reduction == "mean":
        rows = float(linear.forget_rows), float(linear.preserve_rows), 1.0
        # Without rows the term is zero whatever it costs.
        return costs / np.sqrt(np.maximum(rows, 1.0))
    return np.array(costs)


def _teller(now: dict[str, Terms], progress: Progress | None) -> Callable[[str, Terms], None]:
    """Tells the progress of one Linear after another: the lowest terms, those to come at first."""
    done = count(1)

    def tell(name: str, terms: Terms) -> None:
        if terms.sum() < now[name].sum():
            now[name] = terms
        if progress:
            number = next(done)
            progress(number, history_of(np.sum([*now.values()], axis=0)[None], number)[0])

    return tell
