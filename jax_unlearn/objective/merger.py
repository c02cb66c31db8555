"""MergerProblem: the loss of a Merger whose linear_fc1 is adapted, alone or with linear_fc2.

The GELU lies between the change and the output, so the rest of the Merger runs in the loss. With
the tap X of linear_fc1 and the pairs' Δ1 and Δ2 (zero if linear_fc2 is not adapted):

    P = X W1ᵀ + b1    H = GELU(P)    H' = GELU(P + X Δ1ᵀ)    change = (H' − H) W2ᵀ + H' Δ2ᵀ

P and H are constants. In this form, unlike new output minus old, an adapter that changes nothing
gives a change of exactly zero, and the preserve term starts at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jax_unlearn.models.arrays import float_array, index_array, on_device
from jax_unlearn.models.lora import LoraAdapter, LoraPair, lora_delta
from jax_unlearn.models.qwen3_vision.config import LINEARS
from jax_unlearn.objective.loss import LossWeights, three_terms
from jax_unlearn.objective.norms import safe_norm
from jax_unlearn.runtime.arguments import instance_argument

FIRST, LAST = LINEARS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MergerTokens:
    """Tokens of images in one Merger, and the rows of the loss that they belong to; float32.

    Attributes:
        x: X [t, D_in], the tap of linear_fc1.
        before: P [t, H], before the GELU.
        hidden: H [t, H], after the GELU.
        row: index of each token's row, ascending; None if each token is a row.
        mean: [n, H] mean of H over the tokens of each row.
        count: [n] number of tokens of each row.
    """

    x: Float[Array, "t d_in"]
    before: Float[Array, "t h"]
    hidden: Float[Array, "t h"]
    row: Int[Array, " t"] | None
    mean: Float[Array, "n h"]
    count: Float[Array, " n"]

    def change(
        self,
        pairs: Mapping[str, LoraPair],
        scale: float,
        weight: Float[Array | np.ndarray, "e h"],
    ) -> Float[Array, "n e"]:
        """The adapter's change of each row's mean output.

        linear_fc2 is linear, so tokens are averaged before it, where there are fewer rows.

        Args:
            pairs: LoRA pairs of linear_fc1, and of linear_fc2 if it is adapted, by these names.
            scale: alpha / rank.
            weight: W2.
        """
        with jax.default_matmul_precision("highest"):
            first = jnp.asarray(lora_delta(self.x, pairs[FIRST], scale))
            moved = gelu_change(self.before, self.hidden, first)
            if self.row is not None:
                moved = row_means(moved, self.row, self.count)
            change = moved @ weight.T
            if LAST in pairs:
                change += lora_delta(self.mean + moved, pairs[LAST], scale)
        return change

    def take(self, rows: Bool[np.ndarray, " n"]) -> "MergerTokens":
        """The tokens of the rows selected by a mask."""
        row = np.arange(len(rows)) if self.row is None else np.asarray(self.row)
        kept = rows[row]
        x, before, hidden = self.x[kept], self.before[kept], self.hidden[kept]
        if self.row is None:
            return MergerTokens(x, before, hidden, None, hidden, self.count[rows])
        renumbered = on_device((np.cumsum(rows) - 1)[row[kept]])
        return MergerTokens(x, before, hidden, renumbered, self.mean[rows], self.count[rows])


def merger_tokens(
    weight: Any,
    bias: Any,
    x: Any,
    row: Any = None,
) -> MergerTokens:
    """`MergerTokens` from linear_fc1's arrays in torch's layout and its tap.

    Arrays may be of JAX, NumPy or PyTorch, or lists; they are converted to float32.

    Args:
        weight: W1 [H, D_in].
        bias: b1 [H], a number, or None for a Linear without one.
        x: X [t, D_in].
        row: index of each token's row, ascending from 0 without gaps; by default each token is a
            row.

    Raises:
        ValueError: an array has another shape; names the argument.
    """
    w = float_array("weight", weight, ("H", "D_in"))
    sizes = {"H": w.shape[0], "D_in": w.shape[1]}
    b = float_array("bias", 0.0 if bias is None else bias, ("H",), sizes, or_number=True)
    x = float_array("x", x, ("t", "D_in"), sizes)
    before, hidden = around_gelu(w, b, x)
    if row is None:
        ones = on_device(np.ones(len(x), np.float32))
        return MergerTokens(x, before, hidden, None, hidden, ones)
    row = index_array("row", row, len(x))
    index, count = on_device(row), on_device(np.bincount(row).astype(np.float32))
    return MergerTokens(x, before, hidden, index, row_means_alone(hidden, index, count), count)


@jax.jit
def around_gelu(
    weight: Float[Array, "h d_in"], bias: Float[Array, "..."], x: Float[Array, "t d_in"]
) -> tuple[Float[Array, "t h"], Float[Array, "t h"]]:
    """P = X W1ᵀ + b1, and H = GELU(P)."""
    with jax.default_matmul_precision("highest"):
        before = x @ weight.T + bias
    return before, gelu(before)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The Mergers' GELU, the exact one (erf)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_change(
    x: Float[Array, "*n"], before: Float[Array, "*n"], step: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """GELU(x + step) − before, with before = GELU(x); exactly zero where the step is zero.

    Two compiled programs may round the same GELU differently, so the difference is set to zero
    there. The derivative is that of GELU(x + step) everywhere.
    """
    change = gelu(x + step) - before
    return change - jax.lax.stop_gradient(jnp.where(step == 0, change, 0.0))


def row_means(
    x: Float[Array, "t h"], row: Int[Array, " t"], count: Float[Array, " n"]
) -> Float[Array, "n h"]:
    """Mean of each row's tokens."""
    sums = jax.ops.segment_sum(x, row, len(count), indices_are_sorted=True)
    return sums / count[:, None]


# As one program each, where they are called outside of another.
row_means_alone = jax.jit(row_means)
change_alone = jax.jit(MergerTokens.change, static_argnames="scale")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MergerProblem:
    """The forget and preserve rows of one Merger; its key in a problem is the Merger's name.

    Attributes:
        forget: tokens of the forget rows.
        residual: R = T − Y_f [n_f, E], where Y_f is the rows' original mean output.
        preserve: tokens of the preserve rows.
        weight: W2 [E, H].
        linears: the adapted Linears: linear_fc1, or both.
    """

    forget: MergerTokens
    residual: Float[Array, "n_f e"]
    preserve: MergerTokens
    weight: Float[Array, "e h"]
    linears: tuple[str, ...] = field(metadata={"static": True})

    @property
    def rows(self) -> tuple[float, float]:
        """Number of forget rows, and of preserve rows or 1."""
        return float(len(self.residual)), float(max(1, len(self.preserve.count)))

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """(E, D_in) of each adapted Linear, by its full name."""
        hidden, (e, _) = self.forget.before.shape[1], self.weight.shape
        shapes = {FIRST: (hidden, self.forget.x.shape[1]), LAST: (e, hidden)}
        return {f"{name}.{linear}": shapes[linear] for linear in self.linears}

    def terms(
        self, name: str, adapter: LoraAdapter, weights: LossWeights
    ) -> Float[Array, " terms"]:
        """The weighted terms, in the order of TERMS."""
        pairs = {linear: adapter.pairs[f"{name}.{linear}"] for linear in self.linears}
        missed = self.residual - self.forget.change(pairs, adapter.scale, self.weight)
        moved = self.preserve.change(pairs, adapter.scale, self.weight)
        norms = safe_norm(missed), safe_norm(moved)
        return three_terms(*norms, pairs.values(), self.rows, weights)

    def take(
        self, forget: Bool[np.ndarray, " n_f"], preserve: Bool[np.ndarray, " n_p"]
    ) -> "MergerProblem":
        """The problem on the rows selected by two masks."""
        tokens = self.forget.take(forget), self.preserve.take(preserve)
        return MergerProblem(tokens[0], self.residual[forget], tokens[1], self.weight, self.linears)


def merger_problem(
    weight: Any,
    bias: Any,
    forget: MergerTokens,
    target: Any,
    preserve: MergerTokens,
    linears: tuple[str, ...] = (FIRST,),
) -> MergerProblem:
    """A problem from linear_fc2's arrays in torch's layout, tokens, and the target T.

    Arrays may be of JAX, NumPy or PyTorch, or lists; they are converted to float32.

    Args:
        weight: W2 [E, H].
        bias: b2 [E], a number, or None for a Linear without one.
        forget: tokens of the forget rows.
        target: T [n_f, E].
        preserve: tokens of the preserve rows.
        linears: the Linears to adapt: linear_fc1, or both. For linear_fc2 alone use the faster
            `linear_problem`.

    Raises:
        ValueError: an array has another shape, or `linears` are others; names the argument.
        TypeError: `forget` or `preserve` are not `MergerTokens`.
    """
    instance_argument("forget", forget, MergerTokens)
    instance_argument("preserve", preserve, MergerTokens)
    if linears not in ((FIRST,), LINEARS):
        raise ValueError(f"linears is {linears!r}, expected {(FIRST,)} or {LINEARS}")
    sizes = {"H": forget.mean.shape[1], "n_f": forget.mean.shape[0]}
    w2 = float_array("weight", weight, ("E", "H"), sizes)
    sizes["E"] = len(w2)
    b = float_array("bias", 0.0 if bias is None else bias, ("E",), sizes, or_number=True)
    t = float_array("target", target, ("n_f", "E"), sizes)
    with jax.default_matmul_precision("highest"):
        residual = t - (forget.mean @ w2.T + b)
    return MergerProblem(forget, residual, preserve, w2, linears)
