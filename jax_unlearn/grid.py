"""The settings of a sweep: the product of the values of each, or a sample of it."""

import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np

from jax_unlearn.errors import UserError
from jax_unlearn.targets import TargetKind
from jax_unlearn.train import TrainConfig


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

    def config(self, common: TrainConfig) -> TrainConfig:
        """The common settings with those of this point; the target is not one of them."""
        fields = asdict(self)
        del fields["target"]
        return replace(common, **fields)


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

    def settings(self, sample: int | None = None) -> list[Setting]:
        """Every point in the order of the fields, or so many drawn without replacement.

        Raises:
            UserError: a setting without a value, or a sample of none.
        """
        values = asdict(self)
        if empty := [name for name, given in values.items() if not given]:
            raise UserError(f"--{empty[0].replace('_', '-')}s: give at least one value")
        points = [Setting(*point) for point in itertools.product(*values.values())]
        if sample is None or sample >= len(points):
            return points
        if sample < 1:
            raise UserError(f"--sample {sample}: must be at least 1")
        chosen = np.random.default_rng(0).choice(len(points), sample, replace=False)
        return [points[i] for i in sorted(chosen)]
