"""CLIP: a text and an image encoder, each with a projection into a shared embedding space.

The architecture is that of `CLIPModel` in transformers 5.23; OpenCLIP's is the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from jax_unlearn.models.arrays import float_array, numbers
from jax_unlearn.models.clip.encoders import ClipText, ClipTextConfig, ClipVision, ClipVisionConfig
from jax_unlearn.models.layers import adapted, matmul_precision
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.models.tower_jit import tower_jit

# The Linears that an adapter may change.
LINEARS = ("text_projection", "visual_projection")


@dataclass(frozen=True)
class ClipConfig:
    """The model's shape. E, the embedding width, is `projection_dim`.

    text, vision: settings of the encoders; None if the model has no such encoder.
    """

    text: ClipTextConfig | None
    vision: ClipVisionConfig | None
    projection_dim: int
    dtype: str = "float32"

    @property
    def linears(self) -> tuple[str, ...]:
        """The projections of its encoders."""
        sides = zip(LINEARS, (self.text, self.vision), strict=True)
        return tuple(name for name, side in sides if side is not None)

    def text_side(self) -> ClipTextConfig:
        """Settings of the text encoder.

        Raises:
            ValueError: there is none.
        """
        if self.text is None:
            raise ValueError("this CLIP has no text encoder, and takes images alone")
        return self.text

    def vision_side(self) -> ClipVisionConfig:
        """Settings of the image encoder.

        Raises:
            ValueError: there is none.
        """
        if self.vision is None:
            raise ValueError("this CLIP has no image encoder, and takes texts alone")
        return self.vision


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipFeatures:
    """Features of n texts or n images.

    last_hidden_state: as HF returns it, for texts after `final_layer_norm`, for images before
    `post_layernorm`. embeds: the projection's output, not normalised. taps: the projection's input,
    by the projection's name (`text_projection` or `visual_projection`).
    """

    last_hidden_state: Float[Array, "n length d"]
    embeds: Float[Array, "n e"]
    taps: dict[str, Float[Array, "n d"]]


def eot_positions(input_ids: Int[Array, "n l"], config: ClipTextConfig) -> Int[Array, " n"]:
    """Index of each text's end-of-text token, by transformers' rules for old and new configs.

    0 for a text without that token, as in transformers.
    """
    marks = input_ids if config.highest_ends else input_ids == config.eos_token_id
    return marks.argmax(axis=-1)


class Clip(nnx.Module):
    """CLIP, or one of its encoders; they take the arrays of HF's tokenizer and image processor."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, width = config.dtype, config.projection_dim
        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        if config.text is not None:
            self.text_model = ClipText(config.text, dtype, rngs=rngs)
            self.text_projection = linear(config.text.hidden_size, width)
        if config.vision is not None:
            self.vision_model = ClipVision(config.vision, dtype, rngs=rngs)
            self.visual_projection = linear(config.vision.hidden_size, width)
        if config.linears == LINEARS:
            # Always float32, since it is an exponent.
            self.logit_scale = nnx.Param(jnp.zeros((), jnp.float32))

    def encode_text(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        adapter: LoraAdapter | None = None,
    ) -> ClipFeatures:
        """Features of n texts. Each shape compiles once: pad texts to one length.

        Args:
            input_ids: [n, length] tokens, of JAX, NumPy or PyTorch; ids that are traced by JAX are
                not checked.
            attention_mask: [n, length], 0 where a token is padding; None without padding.
            adapter: low-rank changes of the projections; only `text_projection` is used.

        Raises:
            ValueError: there is no text encoder or no text, one is too long, an id is not in the
                vocabulary, an array has another shape, or the adapter names another Linear.
        """
        config = self.config.text_side()
        check_linears(adapter.pairs if adapter else ())
        ids = input_ids if isinstance(input_ids, jax.Array) else numbers("input_ids", input_ids)
        if not isinstance(ids, jax.core.Tracer):
            check_ids(np.asarray(ids), config)
        if attention_mask is None:
            mask: Any = np.ones(ids.shape, bool)
        elif isinstance(attention_mask, jax.Array):
            mask = attention_mask
        else:
            mask = numbers("attention_mask", attention_mask)
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask has shape {mask.shape}, input_ids {ids.shape}")
        graphdef, state = nnx.split(self)
        return text_forward(graphdef, state, ids.astype(np.int32), mask.astype(bool), adapter)

    def encode_image(
        self,
        pixel_values: Any,
        adapter: LoraAdapter | None = None,
    ) -> ClipFeatures:
        """Features of n images, [n, channels, image_size, image_size], of any array type.

        Raises:
            ValueError: there is no image encoder or no image, they have another size, or the
                adapter names another Linear.
        """
        config = self.config.vision_side()
        check_linears(adapter.pairs if adapter else ())
        sizes = {"channels": config.num_channels, "height": config.image_size}
        sizes["width"] = config.image_size
        pixels = float_array("pixel_values", pixel_values, ("n", *sizes), sizes)
        if not len(pixels):
            raise ValueError("pixel_values has no image")
        graphdef, state = nnx.split(self)
        return image_forward(graphdef, state, pixels, adapter)

    def logits(
        self,
        text_embeds: Float[Array | np.ndarray, "texts e"],
        image_embeds: Float[Array | np.ndarray, "images e"],
    ) -> Float[Array, "texts images"]:
        """HF's `logits_per_text`: cosine similarities times exp(logit_scale), in float32."""
        with matmul_precision("float32"):
            cosines = normalised(text_embeds) @ normalised(image_embeds).T
        return cosines * jnp.exp(self.logit_scale[...])

    def linear(self, name: str) -> tuple[Float[np.ndarray, "e d"], Float[np.ndarray, " e"]]:
        """(weight, bias) of a projection as float32 [E, d] and [E]; the bias is zero.

        Raises:
            ValueError: CLIP, or this encoder of it, has no projection of that name.
        """
        check_linears([name], self.config.linears)
        weight = np.asarray(getattr(self, name).kernel[...], np.float32).T
        return weight, np.zeros(len(weight), np.float32)

    def text_features(
        self,
        input_ids: Int[Array, "n l"],
        attention_mask: Bool[Array, "n l"],
        adapter: LoraAdapter | None,
    ) -> ClipFeatures:
        """The text encoder, to be called under jit (see `text_forward`)."""
        with matmul_precision(self.config.dtype):
            x = self.text_model(input_ids, attention_mask)
            ends = eot_positions(input_ids, self.config.text_side())
            return self.project("text_projection", x, x[jnp.arange(len(x)), ends], adapter)

    def image_features(
        self, pixel_values: Float[Array, "n c h w"], adapter: LoraAdapter | None
    ) -> ClipFeatures:
        """The image encoder, to be called under jit (see `image_forward`)."""
        with matmul_precision(self.config.dtype):
            x, pooled = self.vision_model(pixel_values)
            return self.project("visual_projection", x, pooled, adapter)

    def project(
        self,
        name: str,
        last_hidden_state: Float[Array, "n l d"],
        tap: Float[Array, "n d"],
        adapter: LoraAdapter | None,
    ) -> ClipFeatures:
        pair, scale = (adapter.pairs.get(name), adapter.scale) if adapter else (None, 0.0)
        embeds = adapted(getattr(self, name), tap, pair, scale)
        return ClipFeatures(last_hidden_state, embeds, {name: tap})


@tower_jit(0)
def text_forward(
    graphdef: nnx.GraphDef[Clip],
    state: nnx.State,
    input_ids: Int[Array, "n l"],
    attention_mask: Bool[Array, "n l"],
    adapter: LoraAdapter | None,
) -> ClipFeatures:
    """The jitted text encoder; the module is split by the caller."""
    return nnx.merge(graphdef, state).text_features(input_ids, attention_mask, adapter)


@tower_jit(0)
def image_forward(
    graphdef: nnx.GraphDef[Clip],
    state: nnx.State,
    pixel_values: Float[Array, "n c h w"],
    adapter: LoraAdapter | None,
) -> ClipFeatures:
    """The jitted image encoder; the module is split by the caller."""
    return nnx.merge(graphdef, state).image_features(pixel_values, adapter)


def normalised(embeds: Float[Array | np.ndarray, "n e"]) -> Float[Array, "n e"]:
    """Rows scaled to unit norm, in float32."""
    rows = jnp.asarray(embeds, jnp.float32)
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def check_linears(names: Iterable[str], known: Iterable[str] = LINEARS) -> None:
    """Raise ValueError for an unknown name, whose change would otherwise be ignored silently."""
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"CLIP has no Linear {', '.join(unknown)}; it has {[*known]}")


def check_ids(input_ids: np.ndarray, config: ClipTextConfig) -> None:
    """Raise ValueError for another shape, and ids out of range, which devices do not report."""
    if input_ids.ndim != 2 or not input_ids.size or input_ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids has shape {list(input_ids.shape)} and dtype {input_ids.dtype}, expected "
            "whole numbers [n, length] of at least one text"
        )
    length = input_ids.shape[1]
    if length > config.max_position_embeddings:
        raise ValueError(f"texts of {length} tokens; at most {config.max_position_embeddings}")
    if not 0 <= input_ids.min() <= input_ids.max() < config.vocab_size:
        raise ValueError(f"ids are not all in the vocabulary of {config.vocab_size}")
