"""SolverConfig: rank, weights of the loss, and each solver's own settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax

from jax_unlearn.models.lora import LoraAdapter, init_adapter
from jax_unlearn.objective.loss import LossWeights, Problem, Reduction, shapes
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

Select = Literal["best", "last", "held_out"]
# LEACE has neither a rank nor a loss to weight.
FITTED = ("closed_form", "adam")


@dataclass(frozen=True)
class SolverConfig:
    """Settings of `train` and `solve`; the defaults are those that were measured to work."""

    rank: int = used_if(5, optimizer=FITTED)
    """Rank of the change."""
    alpha: float | None = used_if(None, optimizer=FITTED)
    """Numerator of the scale alpha / rank. Not given: the rank, so that the scale is 1."""
    lambda_forget: float = used_if(1.3, optimizer=FITTED)
    """Weight of the forget term."""
    lambda_preserve: float = used_if(2.5, optimizer=FITTED)
    """Weight of the preserve term."""
    lambda_weight: float = used_if(1.0, optimizer=FITTED)
    """Weight of the size of B A."""
    reduction: Reduction = used_if("mean", optimizer=FITTED)
    """Root mean square per row (mean), so that the λ's do not depend on the number of rows, or
    norms over all rows (sum, the published form)."""
    learning_rate: float = used_if(0.01, optimizer="adam")
    """Adam's step size."""
    epochs: int = used_if(2000, optimizer="adam")
    """Adam: full-batch steps."""
    select: Select = used_if("best", optimizer=FITTED)
    """Which adapter is kept: of the lowest loss, of the last epoch (Adam), or of the lowest loss on
    held-out rows, evaluated after every chunk or iteration."""
    seed: int = used_if(0, draws=True)
    """Seed of the split, the drawn targets, the adapter's init and the order of the images."""
    chunk: int = used_if(100, optimizer="adam")
    """Adam: epochs in one compiled scan; progress and faults show after each."""
    iterations: int = used_if(200, optimizer="closed_form")
    """Closed form: the largest number of iterations from each start."""
    tolerance: float = used_if(1e-6, optimizer="closed_form")
    """Closed form: stop when an iteration lowers the loss by less than this share of it."""
    starts: int = used_if(1, optimizer="closed_form")
    """Closed form: number of starts over the terms' sizes; the lowest loss is kept."""

    def loss_weights(self) -> LossWeights:
        return LossWeights(
            self.lambda_forget, self.lambda_preserve, self.lambda_weight, self.reduction
        )

    def init(self, problem: Problem) -> LoraAdapter:
        """The seeded adapter that training starts from."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        return init_adapter(jax.random.key(self.seed), shapes(problem), self.rank, alpha)


def check(config: SolverConfig, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse values that have no meaning, before any work is done for them.

    Args:
        linears: (E, D_in) of each Linear to adapt.

    Raises:
        UserError: names the setting and what it may be.
    """
    for name in ("epochs", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name} {getattr(config, name)}: must not be negative")
    if config.chunk < 1:
        raise UserError(f"--chunk {config.chunk}: must be at least 1")
    for name, shape in linears.items():
        if not 1 <= config.rank <= min(shape):
            raise UserError(f"--rank {config.rank}: must be from 1 to {min(shape)} for {name}")
