"""Forgetting against keeping: a sweep's settings on held-out samples, and which of them to take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jax_unlearn.evaluate.score import Score
from jax_unlearn.features.samples import Sides
from jax_unlearn.objective.loss import Problem
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runs.settings.sweep_config import SweepConfig, Then
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.solvers.grid import Setting, Trained
from jax_unlearn.solvers.many_settings import solve_all, train_all


@dataclass(frozen=True)
class Point:
    """A setting, what training came to, and what held-out samples say of it."""

    trained: Trained
    score: Score

    @property
    def setting(self) -> Setting:
        return self.trained.setting


@dataclass(frozen=True)
class TradeOff:
    """All points of a sweep; front: those that no other beats at both; chosen: the one to take.

    reached: whether the chosen one forgets as much as the rule asks for.
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


def explore(
    session: Session, train: Sides, test: Sides, config: SweepConfig, console: Console
) -> TradeOff:
    """Train and measure every setting of a sweep on one set of statistics.

    Raises:
        UserError: see `Session.settings`.
    """
    settings = session.settings(config)
    known: dict[tuple[TargetKind, int], Problem] = {}

    def problem_of(target: TargetKind, seed: int) -> Problem:
        if (target, seed) not in known:
            having = session.having(target=target, seed=seed)
            known[target, seed] = having.problems(train)[0]
        return known[target, seed]

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(f"Training {len(settings)} settings", total=len(settings))
        optimise = train_all if session.optimizer == "adam" else solve_all
        trained = optimise(
            problem_of, settings, config, lambda done: bar.update(task, completed=done)
        )
        bar.reset(task, description=f"Measuring {len(settings)} settings")
        score, points = session.scorer(train.image_means(), test), []
        for one in trained:
            points.append(Point(one, score(one.adapter)))
            bar.advance(task)
    most = points[0].score.chance if config.forget_at_most is None else config.forget_at_most
    chosen, reached = choose(points, most, config.then)
    return TradeOff(points, front(points), chosen, reached)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at one of forgetting and drift without losing at the other."""

    def beats(one: Score, other: Score) -> bool:
        no_worse = one.forget <= other.forget and one.drift <= other.drift
        return no_worse and (one.forget < other.forget or one.drift < other.drift)

    return [p for p in points if not any(beats(q.score, p.score) for q in points)]


def choose(points: Sequence[Point], most: float, then: Then) -> tuple[Point, bool]:
    """The best of those that forget enough, and whether there is one; else who forgets most.

    Args:
        most: what share of the samples to forget may still be named.
        then: by what the best of them is: `drift`, or `preserve`, the accuracy that is left (and
            of equals the least drift).
    """
    enough = [point for point in points if point.score.forget <= most]
    if not enough:
        return min(points, key=lambda p: (p.score.forget, p.score.drift)), False

    def price(point: Point) -> tuple[float, float]:
        kept = -point.score.preserve if then == "preserve" else 0.0
        return kept, point.score.drift

    return min(enough, key=price), True
