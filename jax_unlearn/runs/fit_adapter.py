"""The adapter of a session's settings: trained, solved for, or LEACE's."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jax_unlearn.features.samples import Sides
from jax_unlearn.objective.linear import describe
from jax_unlearn.objective.loss import Problem
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.closed_form.moments import with_moments
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.erase import erase
from jax_unlearn.solvers.result import Result, Row
from jax_unlearn.solvers.until_forgotten import ForgetSearch, Optimise, search


@dataclass(frozen=True)
class FittedAdapter:
    """What a session's settings came to, and which rows each Linear was fitted to."""

    found: ForgetSearch
    rows: dict[str, dict[str, str]]


def adapt(session: Session, sides: Sides, console: Console) -> FittedAdapter:
    """Fit the adapter to the samples to train on, and say on what."""
    fit, choose, optimiser = fitting(session, sides)
    rows = describe(fit)
    for name, count in rows.items():
        console.out(f"{name}: {count['forget']} to forget, {count['preserve']} to keep")
    stage = None
    if optimiser is train:
        # The others take no longer than a snapshot and a start, and no devices.
        stage = session.stage("training")
        optimiser = partial(train, mesh=session.mesh, stage=stage)
    return FittedAdapter(optimise(fit, choose, session.config, console, optimiser, stage), rows)


def fitting(session: Session, sides: Sides) -> tuple[Problem, Problem | None, Optimise]:
    """(Problem to fit, problem to choose the adapter by, how), from targets that are made once."""
    optimisers: dict[str, Optimise] = {"adam": train, "closed_form": solve}
    if optimiser := optimisers.get(session.optimizer):
        return *session.problems(sides), optimiser
    paths = session.erasable(sides)

    def erasing(_: Problem, config: RunConfig, **__: Any) -> Result:
        return erase(paths, config.loss_weights())

    return {name: path.linear() for name, path in paths.items()}, None, erasing


def optimise(
    problem: Problem,
    held_out: Problem | None,
    config: RunConfig,
    console: Console,
    optimiser: Optimise,
    stage: Stage | None = None,
) -> ForgetSearch:
    """`train` or `solve` under a progress bar, again and again with --until-forgotten.

    stage: that of `train`.
    """
    if optimiser is solve and config.until_forgotten is not None:
        problem = with_moments(problem)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        steps = config.epochs if stage else None
        task = bar.add_task("Training", total=steps)

        def begin(trial: int) -> None:
            bar.reset(task, description="Training" if trial == 1 else f"Training {trial}")

        def progress(epoch: int, row: Row) -> None:
            bar.update(task, completed=epoch, description=f"Training, loss {row['total']:.4g}")

        return search(
            problem,
            config,
            config.until_forgotten,
            rise_counts=config.preset == "faithful",
            held_out=held_out,
            begin=begin,
            progress=progress,
            optimise=optimiser,
            stage=stage,
        )
