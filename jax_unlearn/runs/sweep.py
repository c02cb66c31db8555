"""A sweep: fit and measure many settings, find the front, and choose one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from jax_unlearn.evaluate.judges import Judge
from jax_unlearn.evaluate.score import Score
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.objective.loss import Problem
from jax_unlearn.objective.problem import problems
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.sweep_config import Prefer, SweepConfig
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.solvers.grid import Setting, Trained
from jax_unlearn.solvers.many_settings import solve_all, train_all

# A setting forgets enough if it leaves this share of what was named before ...
FORGOTTEN = 0.1
# ... and keeps this share of what else the samples to forget show, where that is known.
SELECTIVE = 0.9


@dataclass(frozen=True)
class Point:
    """A setting, its adapter, and what held-out samples say of it."""

    trained: Trained
    score: Score

    @property
    def setting(self) -> Setting:
        return self.trained.setting


@dataclass(frozen=True)
class TradeOff:
    """All points of a sweep; front: those that no other beats at both; chosen: the one to take.

    reached: whether the chosen one forgets enough and keeps what else is there (`choose`).
    """

    points: list[Point]
    front: list[Point]
    chosen: Point
    reached: bool

    def rows(self) -> list[dict[str, Any]]:
        """The table: settings, the loss's terms, the scores."""
        return [
            {
                **point.trained.row(),
                **{f"held_out_{name}": value for name, value in asdict(point.score).items()},
                "front": point in self.front,
                "chosen": point is self.chosen,
            }
            for point in self.points
        ]


def explore(extracted: Extracted, judge: Judge, config: SweepConfig, console: Console) -> TradeOff:
    """Fit and measure every setting of a sweep on one set of statistics.

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
        optimise = train_all if optimizer == "adam" else solve_all
        trained = optimise(
            problem_of, settings, config.solver, lambda done: bar.update(task, completed=done)
        )
        bar.reset(task, description=f"Measuring {len(settings)} settings")
        points = []
        for one in trained:
            points.append(Point(one, judge.score(one.adapter)))
            bar.advance(task)
    chosen, reached = choose(points, config.sweep.forget_at_most, config.sweep.prefer)
    return TradeOff(points, front(points), chosen, reached)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at one of forgetting and drift without losing at the other."""

    def beats(one: Score, other: Score) -> bool:
        no_worse = one.forget <= other.forget and one.drift <= other.drift
        return no_worse and (one.forget < other.forget or one.drift < other.drift)

    return [p for p in points if not any(beats(q.score, p.score) for q in points)]


def forgets(score: Score, most: float | None) -> bool:
    """Whether at most a tenth of what was named before still is, or at most the share `most`."""
    return score.forget <= (FORGOTTEN * score.before if most is None else most)


def selective(score: Score) -> bool:
    """Whether nine tenths of what else the samples to forget show is kept, where it is known."""
    if score.selectivity is None or score.selectivity_before is None:
        return True
    return score.selectivity >= SELECTIVE * score.selectivity_before


def choose(points: Sequence[Point], most: float | None, prefer: Prefer) -> tuple[Point, bool]:
    """The best setting that forgets enough and is selective, and whether there is one.

    Without one: the most selective of those that forget enough, or else the one that forgets most.

    Args:
        most: share of the samples to forget that may still be named; see `forgets`.
        prefer: how the best is chosen: by `drift`, or by `preserve`, the accuracy that is left (and
            among equals the least drift).
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
