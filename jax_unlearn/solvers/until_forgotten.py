"""The search of the CLIP scheme: raise λ_f until the forget norm has fallen far enough."""

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
    """What the search came to: the last training, its λ_f, how many there were, the fall reached.

    fall: 1 − ‖forget‖ after / ‖forget‖ before; reached: whether it is what was asked for.
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
    """Train, and again from the start with λ_f larger by 0.05 each time, at most 100 times.

    Args:
        fraction: of the forget norm that must be gone, as 0.7; None asks for nothing.
        rise_counts: take a change by that fraction in either direction, as the published code does.
        begin: called before each training with its number.
        progress: see `train`.
        optimise: `train` or `solve`.
        stage: that of `optimise`, to begin with the training that it is from.
    """
    saved = stage.load() if stage else None
    for trial in range(1, MOST + 1):
        if saved and config.lambda_forget < saved.facts["lambda_forget"]:
            config = replace(config, lambda_forget=config.lambda_forget + STEP)
            continue
        begin(trial)
        result = optimise(problem, config, held_out=held_out, progress=progress)
        first, last = result.history[0]["forget"], result.history[result.epoch]["forget"]
        fall = 1 - last / first if first else 0.0
        reached = fraction is None or (abs(fall) if rise_counts else fall) >= fraction
        if reached or result.stopped or trial == MOST:
            break
        config = replace(config, lambda_forget=config.lambda_forget + STEP)
    return ForgetSearch(result, config.lambda_forget, trial, fall, reached)
