"""Load CLIP checkpoints: the weight table with transformers' names, and `load_clip`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jax_unlearn.models.clip.encoders import ClipTextConfig, ClipVisionConfig
from jax_unlearn.models.clip.model import LINEARS, Clip, ClipConfig
from jax_unlearn.models.layers import ACTIVATIONS
from jax_unlearn.runtime.arguments import path_argument
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import OPEN_CONFIG, local_checkpoint
from porting.adaptable_linears import locate, read_model_type
from porting.checkpoint import Checkpoint, load_config, size_faults
from porting.families import CLIPS
from porting.open_clip import OLD_EOS, open_clip_parts, open_clip_table, open_clip_weights
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
NO_SIZE = ("hidden_act", "layer_norm_eps", "eos_token_id", "highest_ends")
# MetaCLIP 2's tokenizer has OLD_EOS for the end, and its models have no rule of the highest id.
OF_METACLIP = "metaclip_2"


@dataclass(frozen=True)
class QkvRule(Rule):
    """A rule whose Flax array is q, k and v together; `qkv_proj` in its torch key means each."""

    def views(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        for key, view in super().views(array):
            for name, part in zip("qkv", np.split(view, 3), strict=True):
                yield key.replace("qkv_proj", f"{name}_proj"), part


def clip_table(config: ClipConfig) -> list[Rule]:
    """Every tensor of the model, in the order of the forward pass, with `CLIPModel`'s names."""
    rules = []
    if config.text is not None:
        embeddings = "text_model.embeddings"
        rules += [
            Rule(f"{embeddings}.token_embedding.weight", "text_model.token_embedding.embedding"),
            Rule(
                f"{embeddings}.position_embedding.weight", "text_model.position_embedding.embedding"
            ),
            *block_rules("text_model", config.text.num_hidden_layers),
            *norm("text_model.final_layer_norm", "text_model.final_layer_norm"),
            Rule("text_projection.weight", "text_projection.kernel", transposed),
        ]
    if config.vision is not None:
        rules += vision_rules(config.vision)
    if config.linears == LINEARS:
        rules.append(Rule("logit_scale", "logit_scale"))
    return rules


def vision_rules(config: ClipVisionConfig) -> list[Rule]:
    embeddings, size = "vision_model.embeddings", config.patch_size
    kernel = flat_kernel((config.hidden_size, config.num_channels, size, size))
    positions = "vision_model.position_embedding.embedding"
    return [
        Rule(f"{embeddings}.class_embedding", "vision_model.class_embedding"),
        Rule(f"{embeddings}.patch_embedding.weight", "vision_model.patch_embedding.kernel", kernel),
        Rule(f"{embeddings}.position_embedding.weight", positions),
        *norm("vision_model.pre_layrnorm", "vision_model.pre_layrnorm"),
        *block_rules("vision_model", config.num_hidden_layers),
        *norm("vision_model.post_layernorm", "vision_model.post_layernorm"),
        Rule("visual_projection.weight", "visual_projection.kernel", transposed),
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


Parts = dict[str, Any] | None


def clip_parts(directory: Path) -> tuple[Parts, Parts, Any]:
    """The fields of the text and vision configs, and projection_dim, from config.json.

    None in place of the fields of an encoder that the model_type has not.

    Raises:
        UserError: the checkpoint is not a CLIP.
    """
    model_type = read_model_type(directory)
    if not isinstance(model_type, str) or model_type not in CLIPS:
        cure = f"load_clip takes {', '.join(CLIPS)}; load_vision_tower takes the Qwen3 families"
        raise UserError(f"{directory / 'config.json'}: model_type is {model_type!r}; {cure}")
    hf, projections = load_config(directory), CLIPS[model_type].projections
    sides = []
    for name, kind in zip(LINEARS, (ClipTextConfig, ClipVisionConfig), strict=True):
        part = getattr(hf, "text_config" if kind is ClipTextConfig else "vision_config", hf)
        known = [field.name for field in fields(kind) if field.name != "highest_ends"]
        sides.append({n: getattr(part, n) for n in known} if name in projections else None)
    text, vision = sides
    if text is not None:
        of_metaclip = model_type.startswith(OF_METACLIP)
        text["highest_ends"] = text["eos_token_id"] == OLD_EOS and not of_metaclip
    return text, vision, hf.projection_dim


def part_faults(side: str, part: dict[str, Any]) -> list[str]:
    """Values that a CLIP cannot have."""
    sizes = {name: value for name, value in part.items() if name not in NO_SIZE}
    faults = size_faults(sizes)
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
    text, vision, width = open_clip_parts(directory) if is_open else clip_parts(directory)
    sides = {"text": text, "vision": vision}
    faults = [fault for side, part in sides.items() if part for fault in part_faults(side, part)]
    if type(width) is not int or width < 1:
        faults.append(f"projection_dim is {width!r}")
    if faults:
        path = directory / (OPEN_CONFIG if is_open else "config.json")
        raise UserError(f"{path}: {'; '.join(faults)}")
    return ClipConfig(
        None if text is None else ClipTextConfig(**text),
        None if vision is None else ClipVisionConfig(**vision),
        width,
        dtype,
    )


@cache
def abstract_clip(config: ClipConfig) -> Clip:
    """The model with shapes and dtypes instead of arrays, which takes no memory.

    Made once for a config: not to be changed.
    """
    return nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0)))


def load_clip(checkpoint_dir: str | Path, dtype: str = "float32") -> Clip:
    """Load a CLIP checkpoint, text and image encoder or one of them, into Flax.

    Args:
        checkpoint_dir: directory with config.json and one or more safetensors files, as saved by
            transformers' `CLIPModel`, its `CLIPTextModelWithProjection` or
            `CLIPVisionModelWithProjection`, or MetaCLIP 2's classes; or with open_clip_config.json
            and open_clip_model.safetensors or model.safetensors, as saved by OpenCLIP. If both are
            complete, transformers' files are read. Or the id of one on the hub (see
            `local_checkpoint`).
        dtype: dtype of the weights and activations, `float32` or `bfloat16`.

    Raises:
        UserError: the directory is not a CLIP checkpoint, or `dtype` is not supported.
        CheckpointError: tensors are missing, unexpected or wrong; names all of them.
    """
    if not isinstance(dtype, str) or dtype not in TOWER_DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(TOWER_DTYPES)}")
    config, table, checkpoint = _open(path_argument("checkpoint_dir", checkpoint_dir), dtype)
    graphdef, abstract = nnx.split(abstract_clip(config))
    with checkpoint:
        check_projections(checkpoint)
        state = to_flax(table, checkpoint, "", abstract, ignored=POSITION_IDS)
    return nnx.merge(graphdef, state)


def verify_clip(checkpoint_dir: str | Path) -> None:
    """Check all that `load_clip` checks, without keeping the weights; raises as it."""
    config, table, checkpoint = _open(checkpoint_dir, "float32")
    with checkpoint:
        check_projections(checkpoint)
        verify(table, checkpoint, "", nnx.state(abstract_clip(config)), ignored=POSITION_IDS)


def check_projections(checkpoint: Checkpoint) -> None:
    """Refuse one encoder without its projection, such as a `CLIPTextModel`.

    Raises:
        CheckpointError: it has none.
    """
    if checkpoint.file is None:
        locate(checkpoint, CLIPS[str(read_model_type(checkpoint.directory))])


def _open(
    checkpoint_dir: str | Path, dtype: str
) -> tuple[ClipConfig, list[Rule], DequantizedCheckpoint]:
    """(config, weight table, tensors) of a CLIP checkpoint."""
    directory = local_checkpoint(checkpoint_dir)
    config, file = clip_config(directory, dtype), open_clip_weights(directory)
    table = open_clip_table(config) if file else clip_table(config)
    return config, table, DequantizedCheckpoint(directory, file)


def clip_projections(checkpoint_dir: str | Path) -> tuple[str, ...]:
    """CLIP's projections in a checkpoint, by its config alone; empty if it is no CLIP.

    Raises:
        UserError: the directory does not exist, or neither config gives a model type.
    """
    directory = local_checkpoint(checkpoint_dir, "none")
    if open_clip_weights(directory) is not None:
        return LINEARS
    model_type = read_model_type(directory)
    family = CLIPS.get(model_type) if isinstance(model_type, str) else None
    return family.projections if family else ()


def is_clip(checkpoint_dir: str | Path) -> bool:
    """Whether a checkpoint is a CLIP or one of its encoders, by its config (`clip_projections`)."""
    return bool(clip_projections(path_argument("checkpoint_dir", checkpoint_dir)))
