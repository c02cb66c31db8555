"""Fit each request of a ledger alone, against the original model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich.console import Console

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.problem import targets_of
from jax_unlearn.objective.stand_in import StandInRows
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.concepts import concepts_of, preserve_weight_of
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.ledger.source import only
from jax_unlearn.runs.ledger.sums import Change, Changes, changes_of
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.solvers.closed_form.few_rows import ToForget, solve_each
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.result import Result
from jax_unlearn.solvers.stand_in import fit_stand_in

Ways = Mapping[str, Float[np.ndarray, "n e"]]


@dataclass(frozen=True)
class Alone:
    """The changes of the requests that own training images.

    Attributes:
        numbers: which requests these are.
        changes: what each alone changes.
        results: the results of the fits, where each request had one of its own.
        lambda_forget: the largest λ of the fits.
        trials: the largest number of trials that one took.
        reached: whether every fit reached the fraction of --until-forgotten.
    """

    numbers: Sequence[int]
    changes: Sequence[Changes]
    results: Sequence[Result]
    lambda_forget: float
    trials: int
    reached: bool


def owners(extracted: Extracted) -> np.ndarray:
    """For each training image to forget, the number of the request that owns it."""
    assert extracted.requests is not None
    return extracted.requests.owner


def ways_of(extracted: Extracted, config: RunConfig) -> dict[str, np.ndarray]:
    """For each adapted Linear, the way [n, E] from each image to forget to the target that its
    request has alone."""
    found = {}
    groups, seed = owners(extracted), config.solver.seed
    for projector, target in targets_of(extracted, config.objective, seed, groups):
        last = projector.last
        output = last.output(extracted.train.forget.taps[last.name].x)
        found[last.name] = target.rows(output, np.arange(len(output))) - output
    return found


def fit_alone(extracted: Extracted, config: RunConfig, ways: Ways, console: Console) -> Alone:
    """Fit each request against the images of none, with the target that it has alone.

    The closed form is solved for all requests together where nothing else is asked for.

    Args:
        extracted: the features of the requests.
        config: the settings.
        ways: of `ways_of`; empty for the target stand_in.
        console: where progress is shown.
    """
    owner, solver = owners(extracted), config.solver
    numbers = sorted({*owner.tolist()})
    optimizer = optimizer_of(config)
    if optimizer == STAND_IN:
        results = onto_stand_ins(extracted, config, console)
        changes: list[Changes] = [changes_of(one.adapter) for one in results]
    elif optimizer == "closed_form" and not (solver.select == "held_out" or solver.until_forgotten):
        of_linears = {
            name: in_closed_form(name, way, owner, extracted, config, console)
            for name, way in ways.items()
        }
        changes = [
            {name: found[i] for name, found in of_linears.items()} for i in range(len(numbers))
        ]
        results = []
    else:
        # Without snapshots and a bound, which are of one fit.
        found = [
            fit_adapter(only(extracted, owner == i, config), config, console, None, None, False)
            .found for i in numbers
        ]  # fmt: skip
        strongest, reached = max(one.lambda_forget for one in found), all(o.reached for o in found)
        results = [one.result for one in found]
        changes = [changes_of(one.adapter) for one in results]
        most = max(one.trials for one in found)
        return Alone(numbers, changes, results, strongest, most, reached)
    return Alone(numbers, changes, results, solver.lambda_forget, 1, True)


def in_closed_form(
    name: str,
    way: Float[np.ndarray, "n e"],
    owner: np.ndarray,
    extracted: Extracted,
    config: RunConfig,
    console: Console,
) -> list[Change]:
    """The change of one Linear for each request, in the order of their numbers.

    Requests of many images are solved one by one, others share one decomposition.
    """
    x = extracted.train.forget.taps[name].x
    (preserve,) = extracted.train.preserve.statistics[name]
    count = float(max(1, preserve.count))
    problems = {i: ToForget(x[owner == i], way[owner == i]) for i in np.unique(owner)}
    few = {i: one for i, one in problems.items() if 2 * len(one.rows) <= x.shape[1]}
    found: dict[int, Change] = {}
    with progress_bar(console) as bar:
        task = bar.add_task(f"Fitting {name}", total=len(problems))
        if few:
            solved = solve_each(
                [*few.values()], preserve.full_gram(), count, config.solver,
                lambda done: bar.update(task, completed=done),
            )  # fmt: skip
            found = {i: Change(b, a) for i, (b, a) in zip(few, solved, strict=True)}
        if len(few) < len(problems):
            kept = preserve.equivalent_rows().x.astype(np.float32)
            for i in [*problems.keys() - few.keys()]:
                rows, residual = problems[i]
                part = LinearProblem(rows, residual, kept, float(len(rows)), count)
                alone = solve({name: part}, config.solver, bounded=False)
                found[i] = changes_of(alone.adapter)[name]
                bar.advance(task)
    return [found[i] for i in problems]


def onto_stand_ins(extracted: Extracted, config: RunConfig, console: Console) -> list[Result]:
    """Each request moved onto its stand-in, in the order of their numbers."""
    concepts = owned_concepts(extracted, config)
    weight, found = preserve_weight_of(config), []
    with progress_bar(console) as bar:
        task = bar.add_task("Fitting", total=len(concepts))
        for one in concepts:
            found.append(fit_stand_in([one], config.solver.rank, weight))
            bar.advance(task)
    return found


def owned_concepts(extracted: Extracted, config: RunConfig) -> list[dict[str, StandInRows]]:
    """The input of the stand-in solver for the requests that own training images."""
    assert extracted.requests is not None
    owning = {*owners(extracted).tolist()}
    concepts = zip(extracted.requests.trained, concepts_of(extracted, config), strict=True)
    return [concept for number, concept in concepts if number in owning]
