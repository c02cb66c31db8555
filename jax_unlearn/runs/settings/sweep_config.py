"""SweepConfig: the settings of a run, and the values that a sweep tries."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.objective.problem import FITTED, drawn_targets
from jax_unlearn.objective.targets import STAND_IN, TARGETS, TargetKind
from jax_unlearn.runs.settings.config import RunConfig, Solver, build, flat
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if
from jax_unlearn.solvers.grid import Grid, Setting
from jax_unlearn.solvers.stand_in import preserve_weight

Prefer = Literal["drift", "preserve"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The values that a sweep tries, and how it chooses; an empty list means the run's value.

    Settings that would give the same adapter are tried once.
    """

    target_kinds: tuple[TargetKind, ...] = ()
    """Values of --target."""
    lambda_forgets: tuple[float, ...] = (0.65, 1.3, 2.6)
    """Values of --lambda-forget."""
    lambda_preserves: tuple[float, ...] = (0.4, 1.0, 2.5, 6.0)
    """Values of --lambda-preserve."""
    lambda_weights: tuple[float, ...] = used_if((), optimizer=FITTED)
    """Values of --lambda-weight."""
    learning_rates: tuple[float, ...] = used_if((), optimizer="adam")
    """Values of --learning-rate."""
    ranks: tuple[int, ...] = (1, 5)
    """Values of --rank; 8 and 32 by default with --target stand_in. With the closed form, near and
    shift give a change of rank 1 and are tried with the smallest rank only."""
    seeds: tuple[int, ...] = ()
    """Values of --seed, for drawn targets and for the adapter's init."""
    sample: int | None = None
    """Try only this many settings, drawn at random."""
    forget_at_most: float | None = None
    """Largest share of the held-out forget samples that may still be named after the chosen
    setting; by default a tenth of the share named before. A chosen setting also keeps nine tenths
    of the selectivity, if the class names have other words ("red" of "red triangle")."""
    prefer: Prefer = "drift"
    """How to choose among those settings: by the least drift of preserve samples (drift), or by the
    highest accuracy on them (preserve)."""


# The setting for which each list has values.
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
    """The settings of a run, and those of a sweep."""

    sweep: SweepSettings = field(default_factory=SweepSettings)

    def run_config(self) -> RunConfig:
        """The settings of a run, without those of the sweep."""
        settings = {k: v for k, v in flat(self).items() if k not in flat_names(self.sweep)}
        return RunConfig.of(**settings)

    def grid(self) -> Grid:
        """The values that the sweep tries, by setting."""
        own, tried = flat(self) | {"target": self.objective.target_kind}, self.sweep
        values = {base: getattr(tried, name) or (own[base],) for name, base in TRIES.items()}
        return Grid(**values)

    def settings(self, source: SourceKind, optimizer: Solver) -> list[Setting]:
        """The settings that the sweep tries, without any two that give the same adapter.

        Raises:
            UserError: a list is empty, or seeds are given for targets that do not depend on them.
        """
        closed = optimizer != "adam"
        # For every target, Adam's init and additional starts depend on the seed.
        by_seed = drawn_targets(source) if closed and self.solver.starts == 1 else TARGETS
        grid = self.grid()
        if len(grid.seed) > 1 and not set(grid.target) & set(by_seed):
            raise UserError(
                "--seeds: these targets do not depend on the seed in closed form; give one value"
            )
        found = grid.settings(self.sweep.sample, by_seed, one_rank=closed)
        if optimizer == STAND_IN:
            # Only the ratio of the weights counts.
            first: dict[tuple[float, int], Setting] = {}
            for one in found:
                weight = preserve_weight(one.lambda_forget, one.lambda_preserve)
                first.setdefault((weight, one.rank), one)
            found = [*first.values()]
        return found


def flat_names(group: Any) -> list[str]:
    return [*vars(group)]


def sweep_of(config: RunConfig) -> SweepConfig | None:
    """The sweep of a `sweep` command or of `run --auto`; None for any other run."""
    if isinstance(config, SweepConfig):
        return config
    found: SweepConfig = build(SweepConfig, {"auto": False} | sweep_start(config), config)
    return found if config.solver.auto else None


def sweep_start(start: RunConfig) -> dict[str, Any]:
    """Default values of a sweep that depend on the run's settings."""
    return {"ranks": (8, 32)} if start.objective.target == STAND_IN else {}
