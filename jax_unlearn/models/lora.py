"""LoRA adapter: low-rank changes of a few Linears, as a pytree passed to the forward function."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpy import ndarray

from jax_unlearn.models.arrays import any_array, on_device
from jax_unlearn.runtime.arguments import instance_argument


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraPair:
    """Low-rank change of one Linear: factors a [r, D_in] and b [E, r], float32.

    bias: [E] change of the Linear's bias (PEFT's `lora_bias`), or None.
    """

    a: Float[Array | ndarray, "r d_in"]
    b: Float[Array | ndarray, "e r"]
    bias: Float[Array | ndarray, " e"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraAdapter:
    """Low-rank changes Δ = alpha / rank · b @ a of several Linears, by their names in the tower.

    A pair's bias is scaled by alpha / rank too, as in PEFT. `alpha` and `rank` are part of the
    pytree's structure, and so static under jit.
    """

    pairs: dict[str, LoraPair]
    alpha: float = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


# Changes nothing.
NO_CHANGE = LoraAdapter({}, alpha=1.0, rank=1)


def checked_adapter(name: str, adapter: Any) -> LoraAdapter:
    """An adapter that a caller gives, with arrays in place of lists and PyTorch tensors.

    Raises:
        TypeError: it is no LoraAdapter, or has no pairs by name.
        ValueError: its alpha or rank cannot be, or a factor is not an array of two axes; names it.
    """
    instance_argument(name, adapter, LoraAdapter)
    instance_argument(f"{name}.pairs", adapter.pairs, Mapping)
    alpha, rank = adapter.alpha, adapter.rank
    if not isinstance(alpha, int | float | np.number) or not math.isfinite(alpha):
        raise ValueError(f"{name}.alpha is {alpha!r}, expected a number")
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise ValueError(f"{name}.rank is {rank!r}, expected a whole number of at least 1")
    pairs = {}
    for linear, pair in adapter.pairs.items():
        shown = f"{name}.pairs[{linear!r}]"
        instance_argument(shown, pair, LoraPair)
        a = any_array(f"{shown}.a", pair.a, ("rank", "D_in"))
        b = any_array(f"{shown}.b", pair.b, ("E", "rank"))
        bias = None if pair.bias is None else any_array(f"{shown}.bias", pair.bias, ("E",))
        same = a is pair.a and b is pair.b and bias is pair.bias
        pairs[linear] = pair if same else LoraPair(a, b, bias)
    return replace(adapter, pairs=pairs)


def init_adapter(
    key: Array, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float
) -> LoraAdapter:
    """A new adapter that changes nothing: a is Kaiming uniform, b is zero.

    The bound of a is 1 / sqrt(D_in), Kaiming uniform with a = sqrt(5), as in torch's Linear and
    PEFT.

    Args:
        key: PRNG key; split over the Linears in the order of their names.
        shapes: (E, D_in) of each Linear.
        rank: r.
        alpha: numerator of the scale.
    """
    pairs = {}
    for name, subkey in zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True):
        e, d_in = shapes[name]
        bound = 1 / math.sqrt(d_in)
        # Not the default type, which `jax_enable_x64` changes.
        a = jax.random.uniform(subkey, (rank, d_in), jnp.float32, -bound, bound)
        pairs[name] = LoraPair(a=a, b=on_device(np.zeros((e, rank), np.float32)))
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def lora_delta(
    x: Float[Array | ndarray, "*n d_in"], pair: LoraPair, scale: float
) -> Float[Array | ndarray, "*n e"]:
    """x Δᵀ + scale · bias in float32, without forming Δ; by NumPy if all arrays are NumPy's.

    Computed at full precision for every model dtype: a GPU would round a to TF32, and x Δᵀ and the
    bias would not cancel where they should.
    """
    with jax.default_matmul_precision("highest"):
        delta = (x.astype("float32") @ pair.a.T) @ pair.b.T
    return scale * (delta if pair.bias is None else delta + pair.bias)
