"""Layers shared by the models: activations, LayerNorm, an adapted Linear, stacked blocks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from jax_unlearn.models.lora import LoraPair, lora_delta

Block = TypeVar("Block", bound=nnx.Module)


def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """OpenAI CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


# Keys are the names in transformers' configs.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
}


def layer_norm(width: int, epsilon: float, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # Flax's fast variance, E[x²] − E[x]², loses precision when the mean is large; torch's does not.
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=dtype,
        rngs=rngs,
    )


def adapted(
    linear: nnx.Linear, x: Float[Array, "*n d_in"], pair: LoraPair | None, scale: float
) -> Float[Array, "*n e"]:
    """Output of a Linear plus that of its low-rank change; the base weights are not modified."""
    y = linear(x)
    return y if pair is None else y + lora_delta(x, pair, scale).astype(y.dtype)


def stack(make: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
    """`depth` blocks as one module whose arrays have a leading layer axis, for a scan."""
    return nnx.split_rngs(splits=depth)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)


def matmul_precision(dtype: str) -> AbstractContextManager[None]:
    """Full precision for float32: TPU and GPU would otherwise round to bfloat16 or TF32."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else "default")
