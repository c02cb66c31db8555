"""Fit every setting of a sweep: with Adam in one program, or in closed form one after another."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jax_unlearn.objective.loss import TERMS
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.solvers.adam.vmapped import ProblemOf, train_batch
from jax_unlearn.solvers.closed_form.moments import with_moments
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.closed_form.subspace import Subspace
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.grid import Setting, Trained, refuse_held_out, target_of

# Largest size in bytes of R − change of all settings of a batch together.
MEMORY = 2**29


def train_all(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: SolverConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trained]:
    """Train every setting with the start, steps and selection of `train`.

    Ranks are padded to the largest one with rows of A and columns of B that are zero and stay so.

    Args:
        problem_of: the problem of a target and a seed; problems may differ in the forget rows and
            their residuals only.
        settings: one or more settings.
        common: epochs, alpha, reduction and select, which all settings share.
        progress: called with the number of settings done.

    Returns:
        The fitted settings, in the given order.

    Raises:
        UserError: a rank that a Linear cannot have, `select="held_out"`, or rows that are not
            finite.
    """
    refuse_held_out(common)
    done: dict[Setting, Trained] = {}
    for scale, same_scale in by_scale(settings, common).items():
        for groups in batches(problem_of, same_scale):
            for trained in train_batch(problem_of, groups, common, scale):
                done[trained.setting] = trained
            progress(len(done))
    return [done[setting] for setting in settings]


def solve_all(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: SolverConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trained]:
    """Solve every setting in closed form, one after another; learning rates are ignored.

    Consecutive settings of one target share the moments of its rows and their factorisations
    (`subspace`); only those of one target are kept at a time. Arguments as for `train_all`.
    """
    refuse_held_out(common)
    found: dict[Setting, Trained] = {}
    for target, group in itertools.groupby(settings, target_of):
        # Settings with similar ridges follow each other, so that few factorisations are needed.
        ordered = sorted(group, key=lambda one: one.lambda_preserve / max(one.lambda_forget, 1e-9))
        problem, spaces = with_moments(problem_of(*target)), dict[str, Subspace]()
        for setting in ordered:
            result = solve(problem, setting.config(common), bounded=False, spaces=spaces)
            row = result.history[result.epoch]
            terms = np.array([row[name] for name in TERMS])
            found[setting] = Trained(setting, result.adapter, terms, result.stopped is not None)
            progress(len(found))
    return [found[setting] for setting in settings]


def by_scale(settings: Sequence[Setting], common: SolverConfig) -> dict[float, list[Setting]]:
    """Group settings by alpha / rank, a constant of the program (1 unless alpha is given)."""
    found: dict[float, list[Setting]] = {}
    for setting in settings:
        scale = 1.0 if common.alpha is None else common.alpha / setting.rank
        found.setdefault(scale, []).append(setting)
    return found


def batches(problem_of: ProblemOf, settings: Sequence[Setting]) -> Iterator[list[list[Setting]]]:
    """Batches of settings [targets, settings per target], as large as MEMORY allows."""
    groups: dict[tuple[TargetKind, int], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(target_of(setting), []).append(setting)
    problem = problem_of(*next(iter(groups)))
    parts: Sequence[Any] = list(problem.values())
    size = 4 * sum(math.prod(part.residual.shape) for part in parts)
    most = max(1, MEMORY // max(1, size))
    width = min(most, max(map(len, groups.values())))
    rows = [g[i : i + width] for g in groups.values() for i in range(0, len(g), width)]
    for first in range(0, len(rows), max(1, most // width)):
        yield rows[first : first + max(1, most // width)]
