"""The search of the published CLIP scheme: raise λ_f until the forget norm has fallen enough."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jax_unlearn.objective.loss import Problem
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.result import Progress, Result

Optimise = Callable[..., Result]
STEP = 0.05
MOST = 100


@dataclass(frozen=True)
class ForgetSearch:
    """Result of the search.

    Attributes:
        result: the last training.
        lambda_forget: its λ_f.
        trials: number of trainings.
        fall: 1 − (forget norm after) / (forget norm before).
        reached: whether `fall` is at least the requested fraction.
    """

    result: Result
    lambda_forget: float
    trials: int
    fall: float
    reached: bool


def search(
    problem: Problem,
    config: SolverConfig,
    fraction: float | None = None,
    *,
    rise_counts: bool = False,
    held_out: Problem | None = None,
    begin: Callable[[int], None] = lambda _: None,
    progress: Progress | None = None,
    optimise: Optimise = train,
    stage: Stage | None = None,
) -> ForgetSearch:
    """Train repeatedly, raising λ_f by 0.05 each time, at most 100 times.

    Args:
        problem: see `train`.
        config: settings of the first training.
        fraction: fraction by which the forget norm must fall, such as 0.7; None trains once.
        rise_counts: also accept a rise by that fraction, as the published code does.
        held_out: see `train`.
        begin: called with the number of each training before it.
        progress: see `train`.
        optimise: `train` or `solve`.
        stage: snapshots of `optimise`; the search resumes at the training they are from.
    """
    saved = stage.load() if stage else None
    for trial in range(1, MOST + 1):
        if saved and config.lambda_forget < saved.facts["lambda_forget"]:
            config = replace(config, lambda_forget=config.lambda_forget + STEP)
            continue
        begin(trial)
        result = optimise(problem, config, held_out=held_out, progress=progress)
        fall = fall_of(result)
        reached = fraction is None or (abs(fall) if rise_counts else fall) >= fraction
        if reached or result.stopped or trial == MOST:
            break
        config = replace(config, lambda_forget=config.lambda_forget + STEP)
    return ForgetSearch(result, config.lambda_forget, trial, fall, reached)


def fall_of(result: Result) -> float:
    """1 − (forget norm after) / (forget norm before)."""
    first, last = result.history[0]["forget"], result.history[result.epoch]["forget"]
    return 1 - last / first if first else 0.0
