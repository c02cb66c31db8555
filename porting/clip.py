"""Load CLIP checkpoints: the weight table with transformers' names, and `load_clip`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jax_unlearn.models.clip.encoders import ClipTextConfig, ClipVisionConfig
from jax_unlearn.models.clip.model import Clip, ClipConfig
from jax_unlearn.models.layers import ACTIVATIONS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import OPEN_CONFIG, local_checkpoint
from porting.adaptable_linears import read_model_type
from porting.checkpoint import load_config
from porting.open_clip import open_clip_parts, open_clip_table, open_clip_weights
from porting.quantized import DequantizedCheckpoint
from porting.qwen3_vision import TOWER_DTYPES
from porting.weight_table import (
    Rule,
    Tensor,
    flat_kernel,
    linear,
    norm,
    to_flax,
    transposed,
    verify,
)

# Buffers that older checkpoints keep.
POSITION_IDS = tuple(f"{side}_model.embeddings.position_ids" for side in ("text", "vision"))
# Fields that are not sizes; all others are positive integers.
NO_SIZE = ("hidden_act", "layer_norm_eps", "eos_token_id")


@dataclass(frozen=True)
class QkvRule(Rule):
    """A rule whose Flax array is q, k and v together; `qkv_proj` in its torch key means each."""

    def views(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        for key, view in super().views(array):
            for name, part in zip("qkv", np.split(view, 3), strict=True):
                yield key.replace("qkv_proj", f"{name}_proj"), part


def clip_table(config: ClipConfig) -> list[Rule]:
    """Every tensor of the model, in the order of the forward pass, with `CLIPModel`'s names."""
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    size, channels = config.vision.patch_size, config.vision.num_channels
    kernel = flat_kernel((config.vision.hidden_size, channels, size, size))
    return [
        Rule(f"{text}.token_embedding.weight", "text_model.token_embedding.embedding"),
        Rule(f"{text}.position_embedding.weight", "text_model.position_embedding.embedding"),
        *block_rules("text_model", config.text.num_hidden_layers),
        *norm("text_model.final_layer_norm", "text_model.final_layer_norm"),
        Rule("text_projection.weight", "text_projection.kernel", transposed),
        Rule(f"{vision}.class_embedding", "vision_model.class_embedding"),
        Rule(f"{vision}.patch_embedding.weight", "vision_model.patch_embedding.kernel", kernel),
        Rule(f"{vision}.position_embedding.weight", "vision_model.position_embedding.embedding"),
        *norm("vision_model.pre_layrnorm", "vision_model.pre_layrnorm"),
        *block_rules("vision_model", config.vision.num_hidden_layers),
        *norm("vision_model.post_layernorm", "vision_model.post_layernorm"),
        Rule("visual_projection.weight", "visual_projection.kernel", transposed),
        Rule("logit_scale", "logit_scale"),
    ]


def block_rules(side: str, depth: int) -> list[Rule]:
    torch, flax = f"{side}.encoder.layers.{{layer}}", f"{side}.layers"
    qkv, attention = "self_attn.qkv_proj", "self_attn.out_proj"
    return [
        *norm(f"{torch}.layer_norm1", f"{flax}.layer_norm1", depth),
        QkvRule(f"{torch}.{qkv}.weight", f"{flax}.{qkv}.kernel", transposed, depth),
        QkvRule(f"{torch}.{qkv}.bias", f"{flax}.{qkv}.bias", layers=depth),
        *linear(f"{torch}.{attention}", f"{flax}.{attention}", depth),
        *norm(f"{torch}.layer_norm2", f"{flax}.layer_norm2", depth),
        *linear(f"{torch}.mlp.fc1", f"{flax}.mlp.fc1", depth),
        *linear(f"{torch}.mlp.fc2", f"{flax}.mlp.fc2", depth),
    ]


def clip_parts(directory: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The fields of the text and vision configs, and projection_dim, from config.json.

    Raises:
        UserError: the checkpoint is not a CLIP.
    """
    if (model_type := read_model_type(directory)) != "clip":
        cure = "load_clip takes 'clip', load_vision_tower the Qwen3 families"
        raise UserError(f"{directory / 'config.json'}: model_type is {model_type!r}; {cure}")
    hf = load_config(directory)
    text = {field.name: getattr(hf.text_config, field.name) for field in fields(ClipTextConfig)}
    vision = {
        field.name: getattr(hf.vision_config, field.name) for field in fields(ClipVisionConfig)
    }
    return text, vision, hf.projection_dim


def part_faults(side: str, part: dict[str, Any]) -> list[str]:
    """Values that a CLIP cannot have."""
    sizes = {name: value for name, value in part.items() if name not in NO_SIZE}
    faults = [f"{n} is {size!r}" for n, size in sizes.items() if type(size) is not int or size < 1]
    if not faults and part["hidden_size"] % part["num_attention_heads"]:
        width, heads = part["hidden_size"], part["num_attention_heads"]
        faults.append(f"num_attention_heads {heads} does not divide hidden_size {width}")
    if not faults and part.get("patch_size", 1) > part.get("image_size", 1):
        faults.append(f"patch_size {part['patch_size']} is more than image_size")
    if part["hidden_act"] not in ACTIVATIONS:
        faults.append(f"hidden_act {part['hidden_act']!r} is not one of {[*ACTIVATIONS]}")
    if type(part["layer_norm_eps"]) is not float:
        faults.append(f"layer_norm_eps is {part['layer_norm_eps']!r}")
    if type(part.get("eos_token_id", 0)) is not int:
        faults.append(f"eos_token_id is {part['eos_token_id']!r}, expected one id")
    return [f"{side} {fault}" for fault in faults]


def clip_config(directory: str | Path, dtype: str = "float32") -> ClipConfig:
    """The model's shape, from transformers' config.json or OpenCLIP's config file.

    Raises:
        UserError: the checkpoint has neither, or the shape is not supported.
    """
    directory = local_checkpoint(directory, "none")
    is_open = open_clip_weights(directory) is not None
    text, vision, width = (open_clip_parts if is_open else clip_parts)(directory)
    faults = part_faults("text", text) + part_faults("vision", vision)
    if type(width) is not int or width < 1:
        faults.append(f"projection_dim is {width!r}")
    if faults:
        path = directory / (OPEN_CONFIG if is_open else "config.json")
        raise UserError(f"{path}: {'; '.join(faults)}")
    return ClipConfig(ClipTextConfig(**text), ClipVisionConfig(**vision), width, dtype)


def abstract_clip(config: ClipConfig) -> Clip:
    """The model with shapes and dtypes instead of arrays, which takes no memory."""
    return nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0)))


def load_clip(checkpoint_dir: str | Path, dtype: str = "float32") -> Clip:
    """Load a CLIP checkpoint, text and image encoder, into Flax.

    Args:
        checkpoint_dir: directory with config.json and one or more safetensors files, as saved by
            transformers' `CLIPModel`; or with open_clip_config.json and open_clip_model.safetensors
            or model.safetensors, as saved by OpenCLIP. If both are complete, transformers' files
            are read. Or the id of one on the hub (see `local_checkpoint`).
        dtype: dtype of the weights and activations, `float32` or `bfloat16`.

    Raises:
        UserError: the directory is not a CLIP checkpoint, or `dtype` is not supported.
        CheckpointError: tensors are missing, unexpected or wrong; names all of them.
    """
    if dtype not in TOWER_DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(TOWER_DTYPES)}")
    config, table, checkpoint = _open(checkpoint_dir, dtype)
    graphdef, abstract = nnx.split(abstract_clip(config))
    with checkpoint:
        state = to_flax(table, checkpoint, "", abstract, ignored=POSITION_IDS)
    return nnx.merge(graphdef, state)


def verify_clip(checkpoint_dir: str | Path) -> None:
    """Check all that `load_clip` checks, without keeping the weights; raises as it."""
    config, table, checkpoint = _open(checkpoint_dir, "float32")
    with checkpoint:
        verify(table, checkpoint, "", nnx.state(abstract_clip(config)), ignored=POSITION_IDS)


def _open(
    checkpoint_dir: str | Path, dtype: str
) -> tuple[ClipConfig, list[Rule], DequantizedCheckpoint]:
    """(config, weight table, tensors) of a CLIP checkpoint."""
    directory = local_checkpoint(checkpoint_dir)
    config, file = clip_config(directory, dtype), open_clip_weights(directory)
    table = open_clip_table(config) if file else clip_table(config)
    return config, table, DequantizedCheckpoint(directory, file)


def is_clip(checkpoint_dir: str | Path) -> bool:
    """Whether a checkpoint is a CLIP, by transformers' config.json or OpenCLIP's config file.

    Raises:
        UserError: the directory does not exist, or neither file gives a model type.
    """
    directory = local_checkpoint(checkpoint_dir, "none")
    return open_clip_weights(directory) is not None or read_model_type(directory) == "clip"
