"""SolverConfig: rank, weights of the loss, and the settings of each solver."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np

from jax_unlearn.models.lora import LoraAdapter, checked_adapter, init_adapter
from jax_unlearn.objective.loss import LossWeights, Problem, ProjectorProblem, Reduction, shapes
from jax_unlearn.objective.problem import FITTED, WITH_TARGET
from jax_unlearn.runtime.arguments import instance_argument
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import option, used_if

Select = Literal["best", "last", "held_out"]


@dataclass(frozen=True)
class SolverConfig:
    """Settings of `train` and `solve`; the defaults were chosen by measurement."""

    rank: int = used_if(5, optimizer=WITH_TARGET)
    """Rank of the change; 32 by default with --target stand_in."""
    alpha: float | None = used_if(None, optimizer=FITTED)
    """Numerator of the scale alpha / rank; by default the rank, so that the scale is 1."""
    lambda_forget: float = used_if(1.3, optimizer=WITH_TARGET, strength=None)
    """Weight of the forget term; 1 by default with --target stand_in."""
    lambda_preserve: float = used_if(2.5, optimizer=WITH_TARGET, strength=None)
    """Weight of the preserve term; 1 by default with --target stand_in."""
    lambda_weight: float = used_if(1.0, optimizer=FITTED)
    """Weight of the norm of B A."""
    reduction: Reduction = used_if("mean", optimizer=FITTED)
    """Root mean square per row (mean), which makes the λ's independent of the number of rows, or
    norms over all rows (sum, the published form)."""
    learning_rate: float = used_if(0.01, optimizer="adam")
    """Adam's step size."""
    epochs: int = used_if(2000, optimizer="adam")
    """Adam: number of full-batch steps."""
    select: Select = used_if("best", optimizer=FITTED)
    """Which adapter is kept: the one of lowest loss (best), of the last epoch (last, Adam), or of
    lowest loss on held-out rows, evaluated after every chunk or iteration (held_out)."""
    seed: int = used_if(0, draws=True)
    """Seed of the split, the drawn targets, the adapter's init and the order of the images."""
    chunk: int = used_if(100, optimizer="adam")
    """Adam: epochs per compiled scan, after which progress is shown and a snapshot may be saved."""
    iterations: int = used_if(200, optimizer="closed_form")
    """Closed form: the largest number of iterations from each start."""
    tolerance: float = used_if(1e-6, optimizer="closed_form")
    """Closed form: stop when an iteration lowers the loss by less than this share of it."""
    starts: int = used_if(1, optimizer="closed_form")
    """Closed form: number of starting points, which differ in the assumed sizes of the terms; the
    result of lowest loss is kept."""

    def loss_weights(self) -> LossWeights:
        return LossWeights(
            self.lambda_forget, self.lambda_preserve, self.lambda_weight, self.reduction
        )

    def init(self, problem: Problem) -> LoraAdapter:
        """The initial adapter, drawn from the seed."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        return init_adapter(jax.random.key(self.seed), shapes(problem), self.rank, alpha)


# Least value of each setting, and whether that value itself is allowed; all are finite.
LEAST: dict[str, tuple[float, bool]] = {
    "rank": (1, True),
    "lambda_forget": (0, True),
    "lambda_preserve": (0, True),
    "lambda_weight": (0, True),
    "learning_rate": (0, False),
    "epochs": (0, True),
    "seed": (0, True),
    "chunk": (1, True),
    "iterations": (0, True),
    "tolerance": (0, True),
    "starts": (1, True),
}
WHOLE = ("rank", "epochs", "seed", "chunk", "iterations", "starts")
# Largest λ: squares of larger ones leave the range of float32.
LARGEST = 1e15
# Whole numbers are kept in 32 bits by JAX.
MOST = 2**31 - 1
CHOICES = {"reduction": get_args(Reduction), "select": get_args(Select)}


def check_values(config: SolverConfig) -> None:
    """Check the values of the settings, without knowing the Linears.

    Raises:
        UserError: a value is out of range; names the setting and what it may be.
    """
    for name, (least, allowed) in LEAST.items():
        value = getattr(config, name)
        kind = (int, np.integer) if name in WHOLE else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "a whole number" if name in WHOLE else "a number"
            raise UserError(f"{option(name)} {value!r}: must be {what}")
        if not (least < value or (allowed and value == least)) or not value < math.inf:
            bound = f"at least {least:g}" if allowed else f"above {least:g}"
            finite = "" if name in WHOLE else "finite and "
            raise UserError(f"{option(name)} {value}: must be {finite}{bound}")
        most = MOST if name in WHOLE else LARGEST if name.startswith("lambda_") else math.inf
        if value > most:
            raise UserError(f"{option(name)} {value}: must be at most {most:.0f}")
    if config.alpha is not None and not (math.isfinite(config.alpha) and config.alpha):
        raise UserError(
            f"--alpha {config.alpha:g}: must be finite, and not zero, which would scale the change "
            "to nothing"
        )
    for name, choices in CHOICES.items():
        if (value := getattr(config, name)) not in choices:
            raise UserError(f"{option(name)} {value!r}: must be one of {', '.join(choices)}")


def check(config: SolverConfig, problem: Problem, held_out: Problem | None = None) -> None:
    """Check the settings and the rows of a problem before any work is done.

    Raises:
        UserError: as `check_ranks`; or a part has no forget rows.
        TypeError: an argument is of another type.
    """
    instance_argument("config", config, SolverConfig)
    check_problem("problem", problem)
    if held_out is not None:
        check_problem("held_out", held_out)
    check_ranks(config, shapes(problem))
    for name, part in problem.items():
        if not part.rows[0] > 0:
            raise UserError(f"{name}: there are no rows to forget; give at least one")


def checked_init(init: LoraAdapter, problem: Problem) -> LoraAdapter:
    """The initial adapter that a caller gives, with its arrays.

    Raises:
        TypeError: it is no adapter.
        ValueError: it is of other Linears, or a factor has another shape.
    """
    init, linears = checked_adapter("init", init), shapes(problem)
    if init.pairs.keys() != linears.keys():
        raise ValueError(f"init: has pairs for {sorted(init.pairs)}, expected {sorted(linears)}")
    for name, (e, d_in) in linears.items():
        pair = init.pairs[name]
        for part, shape in {"a": (init.rank, d_in), "b": (e, init.rank)}.items():
            if (found := getattr(pair, part).shape) != shape:
                raise ValueError(
                    f"init: {name}.{part} has shape {list(found)}, expected {list(shape)}"
                )
    return init


def check_problem(argument: str, problem: Problem) -> None:
    """Check the types of a problem.

    Raises:
        TypeError: it is not a mapping from names to parts; names the argument.
    """
    instance_argument(argument, problem, Mapping)
    if not problem:
        raise TypeError(f"{argument}: expected at least one part, got none")
    for name, part in problem.items():
        if not isinstance(name, str) or not isinstance(part, ProjectorProblem):
            raise TypeError(
                f"{argument}: expected a LinearProblem or MergerProblem by name, got "
                f"{type(part).__name__}"
            )


def check_ranks(config: SolverConfig, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Check the settings for the Linears to adapt.

    Args:
        config: the settings.
        linears: (E, D_in) of each Linear to adapt.

    Raises:
        UserError: a value is out of range; names the setting and what it may be.
    """
    check_values(config)
    for name, shape in linears.items():
        if config.rank > min(shape):
            raise UserError(f"--rank {config.rank}: must be from 1 to {min(shape)} for {name}")
