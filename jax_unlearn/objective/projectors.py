"""A path to the language model: a Merger's frozen Linears, what they give out, what is trained."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.models.lora import LoraAdapter, lora_delta
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower, merger_pairs
from jax_unlearn.objective.linear import linear_part
from jax_unlearn.objective.loss import ProjectorProblem
from jax_unlearn.objective.merger import FIRST, LAST, MergerTokens, merger_problem, merger_tokens
from jax_unlearn.objective.targets import Target
from jax_unlearn.runtime.errors import UserError

ALL = "all"
# A Linear's weight [E, D_in] and bias [E], as `Qwen3VisionTower.linear` gives them.
Frozen = tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]


@dataclass(frozen=True)
class MergerPath:
    """One Merger and the Linears that are needed of it, by their own names.

    linear_fc2 is always there, linear_fc1 if it is adapted.
    """

    name: str
    linears: Mapping[str, Frozen]

    @property
    def last_tap(self) -> str:
        """Full name of linear_fc2, whose rows are those of the loss."""
        return f"{self.name}.{LAST}"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """(E, D_in) of each Linear whose tap is needed, by its full name."""
        return {f"{self.name}.{own}": weight.shape for own, (weight, _) in self.linears.items()}

    @property
    def last_linear(self) -> Frozen:
        return self.linears[LAST]

    @property
    def is_linear(self) -> bool:
        """A GELU lies between linear_fc1 and the output."""
        return FIRST not in self.linears

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original Merger's output, from rows of its last tap."""
        weight, bias = self.linears[LAST]
        return x @ weight.T + bias

    def change(self, images: SampleFeatures, adapter: LoraAdapter) -> Float[np.ndarray, "n e"]:
        """How the adapter changes each image's mean output; `images` are `image_means`."""
        weight, _ = self.linears[LAST]
        pairs = merger_pairs(adapter, self.name)
        if FIRST in pairs:
            return np.asarray(self._tokens(images).change(pairs, adapter.scale, weight))
        x = images.taps[self.last_tap].x
        if LAST not in pairs:
            return np.zeros((len(x), len(weight)), np.float32)
        return np.asarray(lora_delta(jnp.asarray(x), pairs[LAST], adapter.scale))

    def problem(
        self,
        adapted: Collection[str],
        forget: SampleFeatures,
        target: Target,
        preserve: SampleFeatures,
    ) -> tuple[str, tuple[ProjectorProblem, ...]]:
        """The key of this path and its parts, from the full names of the Linears to adapt."""
        own = tuple(linear for linear in self.linears if f"{self.name}.{linear}" in adapted)
        last, sides = self.linears[LAST], (forget, preserve)
        if FIRST not in own:
            gathered = (side.statistics[self.last_tap] for side in sides)
            parts = (linear_part(*last, f, target, p) for f, p in zip(*gathered, strict=True))
            return self.last_tap, tuple(parts)
        tap = forget.taps[self.last_tap]
        rows = target.rows(self.output(tap.x), tap.image)
        part = merger_problem(*last, self._tokens(forget), rows, self._tokens(preserve), own)
        if forget.choosing is None:
            return self.name, (part,)
        f, p = (side.choosing_rows(self.last_tap) for side in sides)
        return self.name, (part.take(~f, ~p), part.take(f, p))

    def _tokens(self, side: SampleFeatures) -> MergerTokens:
        """Tokens at linear_fc1, grouped as the rows of the last tap are."""
        tap, last = side.taps[f"{self.name}.{FIRST}"], side.taps[self.last_tap]
        row = None if len(last.x) == len(tap.x) else tap.image
        return merger_tokens(*self.linears[FIRST], tap.x, row)


def adapted_linears(
    targets: Iterable[str], linears: Iterable[str], mergers: Sequence[str]
) -> list[str]:
    """Full names of the Linears to adapt, in the order of the tower, each once.

    Args:
        targets: some of the Mergers' names, or "all".
        linears: which Linears of them.
        mergers: the tower's.

    Raises:
        UserError: a Merger that the tower does not have, or nothing to adapt.
    """
    known, given = (ALL, *mergers), list(targets)
    for name in given:
        if name not in known:
            raise UserError(f"--targets {name}: must be any of {', '.join(known)}")
    if not given:
        raise UserError(f"--targets: give at least one of {', '.join(known)}")
    if not (own := sorted(set(linears))):
        raise UserError(f"--linears: give at least one of {FIRST}, {LAST}")
    chosen = [name for name in mergers if ALL in given or name in given]
    return [f"{merger}.{linear}" for merger in chosen for linear in own]


def load_paths(tower: Qwen3VisionTower, adapted: Collection[str]) -> list[MergerPath]:
    """Every path of the tower, for all are read in evaluation; adapted: full names of Linears.

    Raises:
        UserError: the tower has no Linear of one of the names.
    """
    try:
        return [_load_path(tower, merger, adapted) for merger in tower.config.mergers]
    except ValueError as error:
        raise UserError(f"--linears: {error}") from error


def _load_path(tower: Qwen3VisionTower, merger: str, adapted: Collection[str]) -> MergerPath:
    own = {LAST} | {
        name.removeprefix(f"{merger}.") for name in adapted if name.startswith(f"{merger}.")
    }
    linears = {}
    for name in sorted(own):
        weight, bias = tower.linear(f"{merger}.{name}")
        # In the order of a file: a product's rounding depends on it, and a run's statistics keep W.
        linears[name] = (np.ascontiguousarray(weight), bias)
    return MergerPath(merger, linears)
