"""Blocks of the Qwen3 vision tower: RoPE, attention, MLP, PatchMerger."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jax_unlearn.models.attention import frame_attention
from jax_unlearn.models.layers import ACTIVATIONS, adapted, layer_norm
from jax_unlearn.models.lora import LoraPair
from jax_unlearn.models.qwen3_vision.config import VisionConfig

EPSILON = 1e-6


def rope_angles(
    coordinates: Int[Array, "*n 2"], head_dim: int, theta: float
) -> Float[Array, "*n head_dim"]:
    """Axial 2-D rotary angles in float32: head_dim/4 for h, head_dim/4 for w, then repeated."""
    quarter = head_dim // 4
    inverse = 1.0 / theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = coordinates[..., None].astype(jnp.float32) * inverse
    half = angles.reshape(*coordinates.shape[:-1], 2 * quarter)
    return jnp.concatenate([half, half], axis=-1)


def rotate(x: Float[Array, "r l h d"], angles: Float[Array, "r l d"]) -> Float[Array, "r l h d"]:
    """Apply rotary angles in float32; in bfloat16 neighbouring positions would coincide."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + rotated * sin).astype(x.dtype)


class VisionMLP(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.linear_fc1 = linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = linear(config.intermediate_size, config.hidden_size)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "r l d"]) -> Float[Array, "r l d"]:
        return self.linear_fc2(ACTIVATIONS[self.hidden_act](self.linear_fc1(x)))


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = linear(config.hidden_size, config.hidden_size)
        self.num_heads = config.num_heads
        self.kernel = config.kernel

    def __call__(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        filled: Int[Array, " r"],
    ) -> Float[Array, "r l d"]:
        rows, length, width = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = frame_attention(rotate(q, angles), rotate(k, angles), v, filled, self.kernel)
        return self.proj(out.reshape(rows, length, width))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.hidden_size, EPSILON, config.dtype, rngs)
        self.norm2 = layer_norm(config.hidden_size, EPSILON, config.dtype, rngs)
        self.attn = VisionAttention(config, rngs=rngs)
        self.mlp = VisionMLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        filled: Int[Array, " r"],
    ) -> Float[Array, "r l d"]:
        x = x + self.attn(self.norm1(x), angles, filled)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """norm → 2×2 patch merge → linear_fc1 → GELU (erf) → linear_fc2.

    The main Merger normalises each patch before the merge, a DeepStack merger the merged vector.
    With `config.single_linear` it is 2×2 patch merge → linear_fc2 only.
    """

    def __init__(self, config: VisionConfig, *, norm_merged: bool, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.linear_fc2 = linear(config.merged_size, config.out_hidden_size)
        self.norm_merged = norm_merged
        self.single_linear = config.single_linear
        if not config.single_linear:
            width = config.merged_size if norm_merged else config.hidden_size
            self.norm = layer_norm(width, EPSILON, config.dtype, rngs)
            self.linear_fc1 = linear(config.merged_size, config.merged_size)

    def __call__(
        self, x: Float[Array, "r l d"], pairs: dict[str, LoraPair], scale: float
    ) -> tuple[Float[Array, "r m e"], dict[str, Float[Array, "r m d_in"]]]:
        """The embeddings, and the taps (the Linears' inputs). `pairs` may be empty."""
        merged = (x.shape[0], -1, self.linear_fc2.in_features)
        taps = {}
        if self.single_linear:
            x = x.reshape(merged)
        else:
            x = self.norm(x.reshape(merged)) if self.norm_merged else self.norm(x).reshape(merged)
            taps["linear_fc1"] = x
            x = adapted(self.linear_fc1, x, pairs.get("linear_fc1"), scale)
            x = jax.nn.gelu(x, approximate=False)
        taps["linear_fc2"] = x
        return adapted(self.linear_fc2, x, pairs.get("linear_fc2"), scale), taps
