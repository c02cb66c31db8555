"""Sweep: fit and score many settings, find the Pareto front, and choose one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from jax_unlearn.evaluate.judges import Judge
from jax_unlearn.evaluate.score import Score
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.objective.loss import TERMS, Problem
from jax_unlearn.objective.problem import problems
from jax_unlearn.objective.stand_in import StandInRows
from jax_unlearn.objective.targets import STAND_IN, TargetKind
from jax_unlearn.runs.concepts import concepts_of
from jax_unlearn.runs.fit_adapter import Fitting
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.sweep_config import Prefer, SweepConfig
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.solvers.grid import Setting, Trained
from jax_unlearn.solvers.many_settings import solve_all, train_all
from jax_unlearn.solvers.result import Result
from jax_unlearn.solvers.stand_in import fit_stand_in, preserve_weight

# A setting forgets enough if at most this share of the previously named samples is still named.
FORGOTTEN = 0.1
# A setting is selective if it keeps this share of the selectivity before the edit (`Score`).
SELECTIVE = 0.9


@dataclass(frozen=True)
class Point:
    """A fitted setting and its score on held-out samples."""

    trained: Trained
    score: Score

    @property
    def setting(self) -> Setting:
        return self.trained.setting


@dataclass(frozen=True)
class TradeOff:
    """The result of a sweep.

    Attributes:
        points: all settings with their scores.
        front: the Pareto front of forgetting and drift.
        chosen: the chosen setting.
        reached: whether the chosen setting forgets enough and is selective (`choose`).
    """

    points: list[Point]
    front: list[Point]
    chosen: Point
    reached: bool

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a table: settings, terms of the loss, scores."""
        return [
            {
                **point.trained.row(),
                **{f"held_out_{name}": value for name, value in asdict(point.score).items()},
                "front": point in self.front,
                "chosen": point is self.chosen,
            }
            for point in self.points
        ]


def explore(
    extracted: Extracted,
    judge: Judge,
    config: SweepConfig,
    console: Console,
    fitting: Fitting | None = None,
) -> TradeOff:
    """Fit and score every setting of a sweep on the same features.

    Args:
        extracted: the features.
        judge: what scores an adapter.
        config: the settings.
        console: where the progress is shown.
        fitting: how the requests of a ledger are fitted, if the features are of one.

    Raises:
        UserError: see `SweepConfig.settings`.
    """
    optimizer = optimizer_of(config)
    settings = config.settings(extracted.kind, optimizer)
    known: dict[tuple[TargetKind, int], Problem] = {}

    def problem_of(target: TargetKind, seed: int) -> Problem:
        if (target, seed) not in known:
            objective = config.replace(target=target).objective
            known[target, seed] = problems(extracted, objective, seed, held_out=False)[0]
        return known[target, seed]

    with progress_bar(console) as bar:
        task = bar.add_task(f"Training {len(settings)} settings", total=len(settings))

        def progress(done: int) -> None:
            bar.update(task, completed=done)

        if fitting:
            trained = fit_requests(fitting, extracted, settings, config, progress)
        elif optimizer == STAND_IN:
            trained = fit_each(concepts_of(extracted, config), settings, progress)
        else:
            optimise = train_all if optimizer == "adam" else solve_all
            trained = optimise(problem_of, settings, config.solver, progress)
        bar.reset(task, description=f"Measuring {len(settings)} settings")
        points = []
        for one in trained:
            points.append(Point(one, judge.score(one.adapter)))
            bar.advance(task)
    chosen, reached = choose(points, config.sweep.forget_at_most, config.sweep.prefer)
    return TradeOff(points, front(points), chosen, reached)


def fit_each(
    concepts: Sequence[Mapping[str, StandInRows]],
    settings: Sequence[Setting],
    progress: Callable[[int], None],
) -> list[Trained]:
    """Fit the stand-in target with each setting."""
    trained = []
    for setting in settings:
        weight = preserve_weight(setting.lambda_forget, setting.lambda_preserve)
        result = fit_stand_in(concepts, setting.rank, weight)
        trained.append(Trained(setting, result.adapter, terms_of(result), False))
        progress(len(trained))
    return trained


def fit_requests(
    fitting: Fitting,
    extracted: Extracted,
    settings: Sequence[Setting],
    config: SweepConfig,
    progress: Callable[[int], None],
) -> list[Trained]:
    """Fit the requests of a ledger with each setting."""
    quiet, trained = Console(quiet=True), []
    for setting in settings:
        own = config.replace(**asdict(setting))
        fitted = fitting.fit(extracted, own, quiet, None, None)
        result, strongest = fitted.found.result, max(fitted.strengths)
        trained.append(
            Trained(setting, result.adapter, terms_of(result), bool(result.stopped), strongest)
        )
        progress(len(trained))
    return trained


def terms_of(result: Result) -> np.ndarray:
    """The terms of the loss [terms] of a fit."""
    return np.array([result.history[result.epoch][name] for name in TERMS])


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of the points by forgetting and drift (both are to be small)."""

    def beats(one: Score, other: Score) -> bool:
        no_worse = one.forget <= other.forget and one.drift <= other.drift
        return no_worse and (one.forget < other.forget or one.drift < other.drift)

    return [p for p in points if not any(beats(q.score, p.score) for q in points)]


def forgets(score: Score, most: float | None) -> bool:
    """Whether few enough forget samples are still named.

    Args:
        score: the score of a setting.
        most: largest share that may still be named; by default a tenth of the share before.
    """
    return score.forget <= (FORGOTTEN * score.before if most is None else most)


def selective(score: Score) -> bool:
    """Whether nine tenths of the selectivity before the edit is kept; True if it is unknown."""
    if score.selectivity is None or score.selectivity_before is None:
        return True
    return score.selectivity >= SELECTIVE * score.selectivity_before


def choose(points: Sequence[Point], most: float | None, prefer: Prefer) -> tuple[Point, bool]:
    """The best setting that forgets enough and is selective, and whether there is one.

    Without one, the most selective of those that forget enough, or else the one that forgets most.

    Args:
        points: the settings with their scores.
        most: share of the forget samples that may still be named; see `forgets`.
        prefer: what the best has: least `drift`, or highest accuracy on `preserve` samples (and
            least drift among equals).
    """
    enough = [point for point in points if forgets(point.score, most)]
    if not enough:
        return min(points, key=lambda p: (p.score.forget, p.score.drift)), False
    kept = [point for point in enough if selective(point.score)]
    if not kept:
        return max(enough, key=lambda p: (p.score.selectivity or 0.0, -p.score.drift)), False

    def price(point: Point) -> tuple[float, float]:
        lost = -point.score.preserve if prefer == "preserve" else 0.0
        return lost, point.score.drift

    return min(kept, key=price), True
