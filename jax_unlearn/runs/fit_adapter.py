"""Fit an adapter to the extracted features, with the solver chosen by the settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.objective.linear import describe
from jax_unlearn.objective.loss import Problem
from jax_unlearn.objective.problem import adapted_in, problems, targets_of
from jax_unlearn.objective.stand_in import StandInRows
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.concepts import concepts_of, preserve_weight_of
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.config import RunConfig, SolverSettings
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.closed_form.moments import with_moments
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.leace import Erasable, erase
from jax_unlearn.solvers.result import Result, Row
from jax_unlearn.solvers.stand_in import ROUNDS, fit_stand_in
from jax_unlearn.solvers.until_forgotten import ForgetSearch, Optimise, fall_of, search


@dataclass(frozen=True)
class FittedAdapter:
    """A fitted adapter and how it was found.

    Attributes:
        found: the fit; `found.result.adapter` is the adapter.
        rows: how many rows each Linear was fitted to.
        strengths: how far each request of a ledger was moved, as a multiple of the way to its
            target; empty for other features.
    """

    found: ForgetSearch
    rows: dict[str, dict[str, str]]
    strengths: Sequence[float] = ()


def fit_adapter(
    extracted: Extracted,
    config: RunConfig,
    console: Console,
    stage: Stage | None = None,
    mesh: Mesh | None = None,
    bounded: bool = True,
) -> FittedAdapter:
    """Fit an adapter to the training samples.

    The adapted Linears are determined by `config` alone.

    Args:
        extracted: the features.
        config: the settings.
        console: where the number of rows and the progress are shown.
        stage: snapshots of Adam's training; other solvers are too fast to need any.
        mesh: devices of Adam's training.
        bounded: whether the closed form also computes a lower bound of the loss.

    Raises:
        UserError: the rows of a Linear to adapt were not extracted, a solver refuses the settings,
            or the features are of a ledger, which `runs.ledger.fitting.fitting_of` fits.
    """
    if extracted.requests is not None:
        raise UserError(
            "these features are of the requests of a ledger, each of which has a target of its "
            "own; fit them with runs.ledger.fitting.fitting_of"
        )
    optimizer, solver = optimizer_of(config), config.solver
    if optimizer == STAND_IN:
        return fit_concepts(concepts_of(extracted, config), config, console)
    if optimizer == "leace":
        erasables = erasable(extracted, config)
        fit: Problem = {name: one.linear() for name, one in erasables.items()}

        def erasing(_: Problem, settings: Any, **__: Any) -> Result:
            return erase(erasables, settings.loss_weights())

        rows = shown(fit, console)
        return FittedAdapter(run_search(fit, None, solver, console, erasing), rows)
    choose = solver.select == "held_out"
    fit, held_out = problems(extracted, config.objective, solver.seed, choose)
    return fit_problem(fit, held_out, config, console, stage, mesh, bounded)


Fit = Callable[[Extracted, RunConfig, Console, Stage | None, Mesh | None], FittedAdapter]


@dataclass(frozen=True)
class Fitting:
    """How the features of a run are fitted.

    Attributes:
        fit: what fits them, called as `fit_adapter`.
        describe: entries of metrics.json about what `fit` returned.
    """

    fit: Fit = fit_adapter
    describe: Callable[[FittedAdapter], Mapping[str, Any]] = lambda _: {}


def fit_problem(
    fit: Problem,
    held_out: Problem | None,
    config: RunConfig,
    console: Console,
    stage: Stage | None = None,
    mesh: Mesh | None = None,
    bounded: bool = True,
) -> FittedAdapter:
    """Fit an adapter to a problem, by the closed form or Adam.

    Args:
        fit: the problem.
        held_out: the problem to choose the adapter by, or None.
        config: see `fit_adapter`.
        console: see `fit_adapter`.
        stage: see `fit_adapter`.
        mesh: see `fit_adapter`.
        bounded: see `fit_adapter`.
    """
    optimizer, solver = optimizer_of(config), config.solver
    adam = optimizer == "adam"
    optimise: Optimise = (
        partial(train, mesh=mesh, stage=stage) if adam else partial(solve, bounded=bounded)
    )
    rows = shown(fit, console)
    if not adam and solver.until_forgotten is not None:
        fit = with_moments(fit)
    found = run_search(fit, held_out, solver, console, optimise, stage if adam else None)
    return FittedAdapter(found, rows)


def shown(problem: Problem, console: Console) -> dict[str, dict[str, str]]:
    """How many rows each Linear is fitted to, after showing it."""
    rows = describe(problem)
    for name, count in rows.items():
        console.out(f"{name}: to forget {count['forget']}; to keep {count['preserve']}")
    return rows


def fit_concepts(
    concepts: Sequence[Mapping[str, StandInRows]], config: RunConfig, console: Console
) -> FittedAdapter:
    """Fit the stand-in target, which has a solver of its own, for all concepts together."""
    with progress_bar(console) as bar:
        task = bar.add_task("Fitting", total=ROUNDS * len(concepts))
        result = fit_stand_in(
            concepts,
            config.solver.rank,
            preserve_weight_of(config),
            progress=lambda done: bar.update(task, completed=done),
        )
    found = ForgetSearch(result, config.solver.lambda_forget, 1, fall_of(result), True)
    return FittedAdapter(found, in_rows(concepts))


def in_rows(concepts: Sequence[Mapping[str, StandInRows]]) -> dict[str, dict[str, str]]:
    """What each Linear was fitted to, in words."""
    return {name: describe_rows(concepts, name) for name in concepts[0]}


def describe_rows(concepts: Sequence[Mapping[str, StandInRows]], name: str) -> dict[str, str]:
    """What a Linear was fitted to, in words."""
    rows = [one[name] for one in concepts]
    tokens = ", and sampled tokens" if rows[0].tokens else ""
    return {
        "forget": f"{sum(len(one.forget) for one in rows)} image means{tokens}",
        "preserve": f"{rows[0].preserve_rows} image means{tokens}",
    }


def erasable(extracted: Extracted, config: RunConfig) -> dict[str, Erasable]:
    """The input of LEACE for each adapted projector, by the name of its last Linear.

    Raises:
        UserError: a Linear to adapt is not the last of its projector.
    """
    adapted = set(adapted_in(config.objective, extracted))
    found, train = {}, extracted.train
    for projector, target in targets_of(extracted, config.objective, config.solver.seed):
        last = projector.last
        if not projector.is_linear:
            break
        found[last.name] = Erasable(
            last.weight,
            last.bias,
            train.forget.statistics[last.name],
            train.preserve.statistics[last.name],
            target,
        )
    if adapted - set(found):
        raise UserError(
            "--optimizer leace: erases from the output of linear_fc2; leave out --linears"
        )
    return found


def run_search(
    problem: Problem,
    held_out: Problem | None,
    config: SolverSettings,
    console: Console,
    optimise: Optimise,
    stage: Stage | None = None,
) -> ForgetSearch:
    """Fit with a progress bar, repeatedly with --until-forgotten.

    Args:
        problem: the problem to fit.
        held_out: the problem to choose the adapter by, or None.
        config: the solver's settings.
        console: where the progress bar is drawn.
        optimise: the solver.
        stage: snapshots of `train`; None for the other solvers, which do not count epochs.
    """
    with progress_bar(console, counted=False) as bar:
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
            rise_counts=config.count_rise,
            held_out=held_out,
            begin=begin,
            progress=progress,
            optimise=optimise,
            stage=stage,
        )
