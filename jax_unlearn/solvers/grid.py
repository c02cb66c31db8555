"""The settings of a sweep: a product of values, or a sample of it."""

import itertools
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float

from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import TERMS
from jax_unlearn.objective.targets import DRAWN_FOR_NAMES, ONE_STEP, TARGETS, TargetKind
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.config import SolverConfig


@dataclass(frozen=True)
class Setting:
    """One point of a sweep."""

    target: TargetKind
    seed: int
    lambda_forget: float
    lambda_preserve: float
    lambda_weight: float
    learning_rate: float
    rank: int

    def config(self, common: SolverConfig) -> SolverConfig:
        """The common settings with those of this point, except its target."""
        fields = asdict(self)
        del fields["target"]
        return replace(common, **fields)


def target_of(setting: Setting) -> tuple[TargetKind, int]:
    """The target and seed that determine the residual; the seed is 0 for targets not drawn."""
    return setting.target, setting.seed if setting.target in DRAWN_FOR_NAMES else 0


def refuse_held_out(common: SolverConfig) -> None:
    """Raise UserError for `select="held_out"`, which a sweep does not support."""
    if common.select == "held_out":
        raise UserError("--select held_out: a sweep has no images to choose by; take best or last")


@dataclass(frozen=True)
class Grid:
    """Values of each setting; a sweep is their product, or a sample of it."""

    target: tuple[TargetKind, ...]
    seed: tuple[int, ...]
    lambda_forget: tuple[float, ...]
    lambda_preserve: tuple[float, ...]
    lambda_weight: tuple[float, ...]
    learning_rate: tuple[float, ...]
    rank: tuple[int, ...]

    def settings(
        self,
        sample: int | None = None,
        drawn: Collection[TargetKind] = TARGETS,
        one_rank: bool = False,
    ) -> list[Setting]:
        """All points in the order of the fields, or `sample` of them drawn without replacement.

        Args:
            sample: number of points to draw; all by default.
            drawn: targets that depend on the seed; others are tried with the first seed only.
            one_rank: try targets that shift all rows by one vector with the smallest rank only,
                since the closed form gives the same change for every rank.

        Raises:
            UserError: a setting has no value, or `sample` is below 1.
        """
        values = asdict(self)
        if empty := [name for name, given in values.items() if not given]:
            raise UserError(f"--{empty[0].replace('_', '-')}s: give at least one value")
        product = (Setting(*point) for point in itertools.product(*values.values()))
        points = [one for one in product if one.seed == self.seed[0] or one.target in drawn]
        if one_rank:
            least = min(self.rank)
            points = [one for one in points if one.rank == least or one.target not in ONE_STEP]
        if sample is None or sample >= len(points):
            return points
        if sample < 1:
            raise UserError(f"--sample {sample}: must be at least 1")
        chosen = np.random.default_rng(0).choice(len(points), sample, replace=False)
        return [points[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Trained:
    """A fitted setting: its adapter, and the terms of its loss, in the order of TERMS.

    strength: of the requests of a ledger, how far the one was moved that was moved furthest, as a
    multiple of the way to its target; the terms are those of targets that far away.
    """

    setting: Setting
    adapter: LoraAdapter
    terms: Float[np.ndarray, " terms"]
    stopped: bool
    strength: float | None = None

    def row(self) -> dict[str, float | int | str | bool]:
        """The setting and its terms, as a row of a table."""
        terms = dict(zip(TERMS, map(float, self.terms), strict=True))
        total = float(self.terms.sum())
        # Taken from the adapter rather than the settings, so that they are what was fitted.
        linears = " ".join(self.adapter.pairs)
        facts = {"total": total, "stopped": self.stopped, "linears": linears}
        of_requests = {} if self.strength is None else {"strength": self.strength}
        return {**asdict(self.setting), **terms, **facts, **of_requests}
