"""Projector: a Merger or a CLIP projection, which maps the rows at its taps to embeddings.

Its output is the input of the language model, or of CLIP's comparison. Its Linears are frozen; an
adapter changes some of them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.models.frozen_linear import FrozenLinear, by_projector
from jax_unlearn.models.lora import LoraAdapter, lora_delta
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower, merger_pairs
from jax_unlearn.objective.linear import linear_part
from jax_unlearn.objective.loss import ProjectorProblem
from jax_unlearn.objective.merger import (
    FIRST,
    LAST,
    MergerTokens,
    change_alone,
    merger_problem,
    merger_tokens,
)
from jax_unlearn.objective.targets import Target
from jax_unlearn.runtime.errors import UserError

ALL = "all"


@dataclass(frozen=True)
class Projector:
    """A frozen map from rows at its taps to embeddings; some of its Linears may be adapted.

    Attributes:
        last: the Linear that outputs the embeddings; the rows of the loss are its inputs.
        first: a Merger's linear_fc1, if it may be adapted and its tokens were kept; a GELU lies
            between it and the output. None if only `last` may be adapted.
    """

    last: FrozenLinear
    first: FrozenLinear | None = None

    @property
    def name(self) -> str:
        return self.last.projector

    @property
    def linears(self) -> tuple[FrozenLinear, ...]:
        """Every Linear whose tap is needed."""
        return (self.first, self.last) if self.first else (self.last,)

    @property
    def is_linear(self) -> bool:
        """Whether the adapter's change of the embeddings is linear in the rows."""
        return self.first is None

    def change(self, samples: SampleFeatures, adapter: LoraAdapter) -> Float[np.ndarray, "n e"]:
        """The adapter's change of each sample's mean embedding; `samples` from `image_means`."""
        pairs = merger_pairs(adapter, self.name)
        if FIRST in pairs:
            tokens = self._tokens(samples)
            return np.asarray(change_alone(tokens, pairs, adapter.scale, self.last.weight))
        return linear_change(self.last, samples, adapter)

    def problem(
        self,
        adapted: Collection[str],
        forget: SampleFeatures,
        target: Target,
        preserve: SampleFeatures,
    ) -> tuple[str, tuple[ProjectorProblem, ...]]:
        """The projector's key in a problem, and its part of the loss.

        Args:
            adapted: full names of the Linears to adapt.
            forget: features of the forget samples.
            target: target of the forget rows.
            preserve: features of the preserve samples.

        Returns:
            The key, and one part; or two, to fit and to choose by, if images were held out.
        """
        own = tuple(name for name in (FIRST, LAST) if f"{self.name}.{name}" in adapted)
        weight, bias, name = self.last.weight, self.last.bias, self.last.name
        if FIRST not in own:
            sides = zip(forget.statistics[name], preserve.statistics[name], strict=True)
            return name, tuple(linear_part(weight, bias, f, target, p) for f, p in sides)
        tap = forget.taps[name]
        rows = target.rows(self.last.output(tap.x), tap.image)
        tokens = self._tokens(forget), self._tokens(preserve)
        part = merger_problem(weight, bias, tokens[0], rows, tokens[1], own)
        if forget.choosing is None:
            return self.name, (part,)
        f, p = (side.choosing_rows(name) for side in (forget, preserve))
        return self.name, (part.take(~f, ~p), part.take(f, p))

    def _tokens(self, side: SampleFeatures) -> MergerTokens:
        """Tokens at linear_fc1, grouped into the rows of the last tap."""
        assert self.first is not None
        tap, last = side.taps[self.first.name], side.taps[self.last.name]
        row = None if len(last.x) == len(tap.x) else tap.image
        return merger_tokens(self.first.weight, self.first.bias, tap.x, row)


def linear_change(
    linear: FrozenLinear, samples: SampleFeatures, adapter: LoraAdapter
) -> Float[np.ndarray, "n e"]:
    """The adapter's change of a Linear's outputs; zeros if it is not adapted."""
    return rows_change(linear, samples.taps[linear.name].x, adapter)


def rows_change(
    linear: FrozenLinear, x: Float[np.ndarray, "n d_in"], adapter: LoraAdapter
) -> Float[np.ndarray, "n e"]:
    """As `linear_change`, of rows x at the Linear's input."""
    if linear.name not in adapter.pairs:
        return np.zeros((len(x), len(linear.weight)), np.float32)
    # By NumPy, as `output`: JAX would compile programs for each number of rows.
    pair = jax.tree.map(np.asarray, adapter.pairs[linear.name])
    return np.asarray(lora_delta(x, pair, adapter.scale))


def projectors_of(linears: Iterable[FrozenLinear]) -> list[Projector]:
    """Group Linears into projectors, in their order."""
    # In the tower's order a Merger's linear_fc1 comes before linear_fc2.
    return [Projector(*reversed(own)) for own in by_projector(linears).values()]


def adapted_linears(
    targets: Iterable[str], linears: Iterable[str], mergers: Sequence[str]
) -> list[str]:
    """Full names of the Linears to adapt, in the order of the tower, each once.

    Args:
        targets: names of Mergers, or "all".
        linears: names of Linears within each Merger.
        mergers: names of the tower's Mergers.

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


def frozen_linears(tower: Qwen3VisionTower, adapted: Collection[str]) -> list[FrozenLinear]:
    """linear_fc2 of every Merger, since all are evaluated, and linear_fc1 where it is adapted.

    Args:
        adapted: full names of the Linears to adapt.

    Raises:
        UserError: the tower has no Linear of such a name.
    """
    needed = {f"{merger}.{LAST}" for merger in tower.config.mergers} | set(adapted)
    order = [f"{merger}.{own}" for merger in tower.config.mergers for own in (FIRST, LAST)]
    names = [name for name in order if name in needed] + sorted(needed - set(order))
    try:
        found = {name: tower.linear(name) for name in names}
    except ValueError as error:
        raise UserError(f"--linears: {error}") from error
    return [FrozenLinear(k, np.ascontiguousarray(w), bias) for k, (w, bias) in found.items()]
