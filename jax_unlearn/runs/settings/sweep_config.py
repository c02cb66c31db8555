"""SweepConfig: a run's settings, and the values that a sweep tries."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.objective.problem import drawn_targets
from jax_unlearn.objective.targets import TARGETS, TargetKind
from jax_unlearn.runs.settings.config import Optimizer, RunConfig, build, flat
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if
from jax_unlearn.solvers.grid import Grid, Setting

Prefer = Literal["drift", "preserve"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The values that a sweep tries, and how it chooses; an empty list means the run's own value.

    Settings that would give the same adapter are tried once.
    """

    target_kinds: tuple[TargetKind, ...] = ()
    """Values of --target."""
    lambda_forgets: tuple[float, ...] = (0.65, 1.3, 2.6)
    """Values of --lambda-forget."""
    lambda_preserves: tuple[float, ...] = (0.4, 1.0, 2.5, 6.0)
    """Values of --lambda-preserve."""
    lambda_weights: tuple[float, ...] = ()
    """Values of --lambda-weight."""
    learning_rates: tuple[float, ...] = used_if((), optimizer="adam")
    """Values of --learning-rate."""
    ranks: tuple[int, ...] = (1, 5)
    """Values of --rank. With the closed form, near and shift have a change of rank 1 and are tried
    with the smallest of them only."""
    seeds: tuple[int, ...] = ()
    """Values of --seed, of the targets that are drawn and of the adapter's init."""
    sample: int | None = None
    """Try only this many settings, drawn at random."""
    forget_at_most: float | None = None
    """Share of the held-out samples to forget that may still be named for a setting to be chosen;
    by default a tenth of what was named before. A chosen setting also keeps nine tenths of what
    else those samples show, where their class names say something else."""
    prefer: Prefer = "drift"
    """How the setting is chosen among those: by the least drift of what is kept, or by the accuracy
    on it."""


# The setting that each list has values of.
TRIES: dict[str, str] = {
    "target_kinds": "target",
    "lambda_forgets": "lambda_forget",
    "lambda_preserves": "lambda_preserve",
    "lambda_weights": "lambda_weight",
    "learning_rates": "learning_rate",
    "ranks": "rank",
    "seeds": "seed",
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RunConfig):
    """A run's settings and those of the sweep."""

    sweep: SweepSettings = field(default_factory=SweepSettings)

    def run_config(self) -> RunConfig:
        """Without the sweep."""
        settings = {k: v for k, v in flat(self).items() if k not in flat_names(self.sweep)}
        return RunConfig.of(**settings)

    def grid(self) -> Grid:
        """The values tried."""
        own, tried = flat(self), self.sweep
        values = {base: getattr(tried, name) or (own[base],) for name, base in TRIES.items()}
        return Grid(**values)

    def settings(self, source: SourceKind, optimizer: Optimizer) -> list[Setting]:
        """What the sweep tries: no two that give the same adapter.

        Raises:
            UserError: values without a meaning, or none.
        """
        closed = optimizer == "closed_form"
        # Adam's start, and those over the terms' sizes, are drawn whatever the target is.
        by_seed = drawn_targets(source) if closed and self.solver.starts == 1 else TARGETS
        grid = self.grid()
        if len(grid.seed) > 1 and not set(grid.target) & set(by_seed):
            raise UserError(
                "--seeds: nothing is drawn for these targets by the closed form; give one value"
            )
        return grid.settings(self.sweep.sample, by_seed, one_rank=closed)


def flat_names(group: Any) -> list[str]:
    return [*vars(group)]


def sweep_of(config: RunConfig) -> SweepConfig | None:
    """The sweep that a command is or begins with; None without."""
    if isinstance(config, SweepConfig):
        return config
    found: SweepConfig = build(SweepConfig, {"auto": False}, config)
    return found if config.solver.auto else None
