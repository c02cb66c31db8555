"""SolverConfig: rank, weights of the loss, and the settings of each solver."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax

from jax_unlearn.models.lora import LoraAdapter, init_adapter
from jax_unlearn.objective.loss import LossWeights, Problem, Reduction, shapes
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

Select = Literal["best", "last", "held_out"]
# Optimisers of the loss; LEACE has neither a rank nor weights of a loss.
FITTED = ("closed_form", "adam")


@dataclass(frozen=True)
class SolverConfig:
    """Settings of `train` and `solve`; the defaults were chosen by measurement."""

    rank: int = used_if(5, optimizer=FITTED)
    """Rank of the change."""
    alpha: float | None = used_if(None, optimizer=FITTED)
    """Numerator of the scale alpha / rank; by default the rank, so that the scale is 1."""
    lambda_forget: float = used_if(1.3, optimizer=FITTED)
    """Weight of the forget term."""
    lambda_preserve: float = used_if(2.5, optimizer=FITTED)
    """Weight of the preserve term."""
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


def check(config: SolverConfig, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Check the values of the settings before any work is done.

    Args:
        config: the settings.
        linears: (E, D_in) of each Linear to adapt.

    Raises:
        UserError: a value is out of range; names the setting and what it may be.
    """
    for name in ("epochs", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name} {getattr(config, name)}: must not be negative")
    if config.chunk < 1:
        raise UserError(f"--chunk {config.chunk}: must be at least 1")
    for name, shape in linears.items():
        if not 1 <= config.rank <= min(shape):
            raise UserError(f"--rank {config.rank}: must be from 1 to {min(shape)} for {name}")
