"""CLIP's text and image transformers; `clip/model.py` combines them.

The architecture is that of `CLIPModel` in transformers 5.23; OpenCLIP's is the same.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from jax_unlearn.models.layers import ACTIVATIONS, layer_norm, stack


@dataclass(frozen=True)
class ClipEncoderConfig:
    """Settings common to both transformers. d is `hidden_size`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(ClipEncoderConfig):
    """Settings of the text transformer.

    A text ends at its first eos_token_id; with `highest_ends`, at its first highest id.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    highest_ends: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(ClipEncoderConfig):
    """Settings of the image transformer: square images of square patches.

    Pixels of an incomplete patch at the right and bottom edge are dropped.
    """

    image_size: int
    patch_size: int
    num_channels: int = 3

    @property
    def side(self) -> int:
        """Number of patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        return self.num_channels * self.patch_size**2


def text_mask(attention_mask: Bool[Array, "n l"]) -> Bool[Array, "n 1 l l"]:
    """Causal mask [query, key]: a token attends to itself and earlier tokens, except padding."""
    length = attention_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool)) & attention_mask[:, None, None, :]


class ClipAttention(nnx.Module):
    """Multi-head attention; `qkv_proj` is q_proj, k_proj and v_proj concatenated, in this order."""

    def __init__(self, config: ClipEncoderConfig, dtype: str, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.qkv_proj = linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = linear(config.hidden_size, config.hidden_size)
        self.num_heads = config.num_attention_heads

    def __call__(
        self, x: Float[Array, "n l d"], mask: Bool[Array, "n 1 l l"] | None
    ) -> Float[Array, "n l d"]:
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (part.reshape(heads) for part in jnp.split(self.qkv_proj(x), 3, axis=-1))
        return self.out_proj(jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape))


class ClipMLP(nnx.Module):
    def __init__(self, config: ClipEncoderConfig, dtype: str, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.fc1 = linear(config.hidden_size, config.intermediate_size)
        self.fc2 = linear(config.intermediate_size, config.hidden_size)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x)))


class ClipBlock(nnx.Module):
    def __init__(self, config: ClipEncoderConfig, dtype: str, *, rngs: nnx.Rngs):
        norm = partial(layer_norm, config.hidden_size, config.layer_norm_eps, dtype, rngs)
        self.layer_norm1, self.layer_norm2 = norm(), norm()
        self.self_attn = ClipAttention(config, dtype, rngs=rngs)
        self.mlp = ClipMLP(config, dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n l d"], mask: Bool[Array, "n 1 l l"] | None
    ) -> Float[Array, "n l d"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


def blocks(config: ClipEncoderConfig, dtype: str, rngs: nnx.Rngs) -> ClipBlock:
    """All blocks of one transformer, stacked on a leading layer axis."""
    return stack(lambda r: ClipBlock(config, dtype, rngs=r), config.num_hidden_layers, rngs)


def encode(
    layers: ClipBlock, x: Float[Array, "n l d"], mask: Bool[Array, "n 1 l l"] | None
) -> Float[Array, "n l d"]:
    """Apply stacked blocks with a scan, so that compile time does not grow with depth."""
    graphdef, stacked = nnx.split(layers)

    def layer(x: Array, weights: nnx.State) -> tuple[Array, None]:
        return nnx.merge(graphdef, weights)(x, mask), None

    return jax.lax.scan(layer, x, stacked)[0]


class ClipText(nnx.Module):
    def __init__(self, config: ClipTextConfig, dtype: str, *, rngs: nnx.Rngs):
        embed = partial(nnx.Embed, dtype=dtype, param_dtype=dtype, rngs=rngs)
        width = config.hidden_size
        self.token_embedding = embed(config.vocab_size, width)
        self.position_embedding = embed(config.max_position_embeddings, width)
        self.layers = blocks(config, dtype, rngs)
        self.final_layer_norm = layer_norm(width, config.layer_norm_eps, dtype, rngs)

    def __call__(
        self, input_ids: Int[Array, "n l"], attention_mask: Bool[Array, "n l"]
    ) -> Float[Array, "n l d"]:
        """The last hidden state; meaningless for a token that attends to no token."""
        positions = self.position_embedding.embedding[...][: input_ids.shape[1]]
        x = self.token_embedding(input_ids) + positions
        return self.final_layer_norm(encode(self.layers, x, text_mask(attention_mask)))


class ClipVision(nnx.Module):
    def __init__(self, config: ClipVisionConfig, dtype: str, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        embed = partial(nnx.Embed, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.config, width = config, config.hidden_size
        self.class_embedding = nnx.Param(jnp.zeros(width, dtype))
        self.patch_embedding = linear(config.patch_dim, width)
        self.position_embedding = embed(config.side**2 + 1, width)
        # Every checkpoint has this misspelt name.
        self.pre_layrnorm = layer_norm(width, config.layer_norm_eps, dtype, rngs)
        self.layers = blocks(config, dtype, rngs)
        self.post_layernorm = layer_norm(width, config.layer_norm_eps, dtype, rngs)

    def __call__(
        self, pixel_values: Float[Array, "n c h w"]
    ) -> tuple[Float[Array, "n l d"], Float[Array, "n d"]]:
        """The last hidden state, and the class token's state after `post_layernorm`."""
        x = self.patch_embedding(self.patches(pixel_values))
        first = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding.embedding[...]
        x = encode(self.layers, self.pre_layrnorm(x), None)
        return x, self.post_layernorm(x[:, 0])

    def patches(self, pixel_values: Float[Array, "n c h w"]) -> Float[Array, "n side_2 patch"]:
        """Flat patches, row by row; the checkpoint's Conv2d has a kernel equal to its stride."""
        side, size = self.config.side, self.config.patch_size
        n, channels = pixel_values.shape[:2]
        whole = pixel_values[:, :, : side * size, : side * size]
        tiles = whole.reshape(n, channels, side, size, side, size).transpose(0, 2, 4, 1, 3, 5)
        return tiles.reshape(n, side**2, -1)
