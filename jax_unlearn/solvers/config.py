"""TrainConfig: rank, weights of the loss, and each solver's own settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax

from jax_unlearn.models.lora import LoraAdapter, init_adapter
from jax_unlearn.objective.loss import LossWeights, Problem, Reduction, shapes
from jax_unlearn.runtime.errors import UserError

Select = Literal["best", "last", "held_out"]


@dataclass(frozen=True)
class SolverConfig:
    """Settings of the optimisation; the constants are the published ones."""

    rank: int = 5
    """Rank of the change."""
    alpha: float | None = None
    """Numerator of the scale alpha / rank. Not given: the rank, so that the scale is 1."""
    lambda_forget: float = 1.3
    """Weight of the forget term."""
    lambda_preserve: float = 0.4
    """Weight of the preserve term."""
    lambda_weight: float = 1.0
    """Weight of the size of B A."""
    reduction: Reduction = "sum"
    """Norms over all rows (sum, the published form) or root mean square per row (mean)."""
    learning_rate: float = 0.01
    """Adam's step size."""
    epochs: int = 2000
    """Full-batch steps."""
    select: Select = "best"
    """Which adapter is kept: of the lowest loss, of the last epoch, or of the lowest loss on
    held-out rows, looked at after every chunk."""
    seed: int = 0
    """Of the split, the targets and the adapter's init."""
    chunk: int = 100
    """Epochs in one compiled scan; progress and faults show after each."""
    iterations: int = 200
    """Closed form: at most so many iterations from each start."""
    tolerance: float = 1e-6
    """Closed form: stop when an iteration lowers the loss by less than this share of it."""
    starts: int = 1
    """Closed form: how many starts over the terms' sizes; the lowest loss is kept."""

    def loss_weights(self) -> LossWeights:
        return LossWeights(
            self.lambda_forget, self.lambda_preserve, self.lambda_weight, self.reduction
        )

    def init(self, problem: Problem) -> LoraAdapter:
        """The seeded adapter that training starts from."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        return init_adapter(jax.random.key(self.seed), shapes(problem), self.rank, alpha)


def check(config: SolverConfig, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse settings that cannot be meant, before any work is done for them.

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
