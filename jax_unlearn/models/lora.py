"""The low-rank change of a few Linears, as a pytree that a forward takes as an argument."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
from jax import Array
from jaxtyping import Float
from numpy import ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraPair:
    """The two factors of one Linear's change: a [r, D_in] and b [E, r], float32.

    bias: [E] a change of the Linear's bias beside them (PEFT's `lora_bias`), None without one.
    """

    a: Float[Array | ndarray, "r d_in"]
    b: Float[Array | ndarray, "e r"]
    bias: Float[Array | ndarray, " e"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraAdapter:
    """Δ = alpha / rank · b @ a for each Linear, by the name that `qwen3_vl` gives it.

    A pair's bias is scaled as b @ a is, for PEFT does so. `alpha` and `rank` belong to the tree's
    structure: they are static under jit.
    """

    pairs: dict[str, LoraPair]
    alpha: float = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapter(
    key: Array, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float
) -> LoraAdapter:
    """A fresh adapter that changes nothing: a is Kaiming uniform, b is zero.

    Args:
        key: PRNG key; each Linear draws from its own fold of it, in the order of the names.
        shapes: (E, D_in) of each Linear.
        rank: r.
        alpha: numerator of the scale.

    The bound is 1 / sqrt(D_in): Kaiming uniform with a = sqrt(5), as torch's Linear and PEFT do.
    """
    pairs = {}
    for name, subkey in zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True):
        e, d_in = shapes[name]
        bound = 1 / math.sqrt(d_in)
        a = jax.random.uniform(subkey, (rank, d_in), minval=-bound, maxval=bound)
        pairs[name] = LoraPair(a=a, b=jax.numpy.zeros((e, rank)))
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def lora_delta(x: Float[Array, "*n d_in"], pair: LoraPair, scale: float) -> Float[Array, "*n e"]:
    """x Δᵀ + scale · bias in float32, without forming Δ.

    Whatever the model's precision: a GPU would round a to TF32, and then x Δᵀ and the bias do not
    cancel where they should.
    """
    with jax.default_matmul_precision("highest"):
        delta = (x.astype("float32") @ pair.a.T) @ pair.b.T
    return scale * (delta if pair.bias is None else delta + pair.bias)
