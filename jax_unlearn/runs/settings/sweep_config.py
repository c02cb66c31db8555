"""Every setting of a sweep: a run's, and the values of those that it tries."""

from dataclasses import dataclass
from typing import Literal

from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runs.settings.config import RunConfig, settings_of
from jax_unlearn.solvers.grid import Grid

Then = Literal["drift", "preserve"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RunConfig):
    """A run's settings, and the values of those that a sweep tries; a list that is empty stands for
    the run's own."""

    target_kinds: tuple[TargetKind, ...] = ()
    """Values of --target."""
    lambda_forgets: tuple[float, ...] = (0.65, 1.3, 2.6)
    """Values of --lambda-forget."""
    lambda_preserves: tuple[float, ...] = (0.4, 1.0, 2.5, 6.0)
    """Values of --lambda-preserve."""
    lambda_weights: tuple[float, ...] = ()
    """Values of --lambda-weight."""
    learning_rates: tuple[float, ...] = ()
    """Values of --learning-rate, with --optimizer adam."""
    ranks: tuple[int, ...] = (1, 5)
    """Values of --rank."""
    seeds: tuple[int, ...] = ()
    """Values of --seed, of the targets that are drawn and of the adapter's init; the closed form
    tries a target that is not drawn with the first of them only."""
    sample: int | None = None
    """Try so many settings, drawn at random, and not all of them."""
    forget_at_most: float | None = None
    """What share of the held-out samples to forget may still be named for a setting to be chosen;
    by default what a guess would name."""
    then: Then = "drift"
    """By what the setting is chosen among those: the least drift of what is kept, or the accuracy
    on it."""

    def grid(self) -> Grid:
        """The values tried."""
        return Grid(
            self.target_kinds or (self.target,),
            self.seeds or (self.seed,),
            self.lambda_forgets or (self.lambda_forget,),
            self.lambda_preserves or (self.lambda_preserve,),
            self.lambda_weights or (self.lambda_weight,),
            self.learning_rates or (self.learning_rate,),
            self.ranks or (self.rank,),
        )


def sweep_of(config: RunConfig) -> SweepConfig | None:
    """The sweep that a command is or begins with."""
    if isinstance(config, SweepConfig):
        return config
    return SweepConfig(**settings_of(config)) if config.auto else None
