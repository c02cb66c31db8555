"""Every setting of a sweep: many trainings as one program, or one solution after another."""

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

# What R − change of all settings at once may take, in bytes.
MEMORY = 2**29


def train_all(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: SolverConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trained]:
    """Train every setting, as `train` would one: the same start, steps and choice of the adapter.

    Ranks are padded to the largest with rows of A and columns of B that are zero and stay so.

    Args:
        problem_of: the problem of a target and a seed; they may differ in the rows to
            forget and their residuals only.
        settings: one or more.
        common: epochs, alpha, reduction and select of all of them.
        progress: called with the number of settings that are done.

    Raises:
        UserError: a rank that a Linear cannot have, `select="held_out"`, or rows that are not
            finite.
    """
    refuse_held_out(common)
    done: dict[Setting, Trained] = {}
    for scale, alike in by_scale(settings, common).items():
        for groups in batches(problem_of, alike):
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
    """The same with the closed form, one after another; learning rates are ignored.

    Neighbours with one target share the moments of its rows, and factors of them (`subspace`, which
    says how many are held for each Linear); no two targets' are kept at a time.
    """
    refuse_held_out(common)
    found: dict[Setting, Trained] = {}
    for target, group in itertools.groupby(settings, target_of):
        # Those whose ridges are alike in a row, so that few factors need be kept.
        alike = sorted(group, key=lambda one: one.lambda_preserve / max(one.lambda_forget, 1e-9))
        problem, spaces = with_moments(problem_of(*target)), dict[str, Subspace]()
        for setting in alike:
            result = solve(problem, setting.config(common), bounded=False, spaces=spaces)
            row = result.history[result.epoch]
            terms = np.array([row[name] for name in TERMS])
            found[setting] = Trained(setting, result.adapter, terms, result.stopped is not None)
            progress(len(found))
    return [found[setting] for setting in settings]


def by_scale(settings: Sequence[Setting], common: SolverConfig) -> dict[float, list[Setting]]:
    """Settings by alpha / rank, which is a constant of the program: one, unless alpha is given."""
    found: dict[float, list[Setting]] = {}
    for setting in settings:
        scale = 1.0 if common.alpha is None else common.alpha / setting.rank
        found.setdefault(scale, []).append(setting)
    return found


def batches(problem_of: ProblemOf, settings: Sequence[Setting]) -> Iterator[list[list[Setting]]]:
    """Settings in batches [targets, settings of each], as many as memory allows at once."""
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
