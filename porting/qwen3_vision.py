"""Load Qwen3 vision towers: the weight table, a checkpoint's tower, and `load_vision_tower`."""

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flax import nnx

from jax_unlearn.models.layers import ACTIVATIONS
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runtime.arguments import path_argument
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.text_files import read_json
from porting.adaptable_linears import AdaptableLinears, locate, read_family, read_model_type
from porting.checkpoint import Checkpoint, load_config, refuse_adapter_beside, size_faults
from porting.families import FAMILIES, Family
from porting.quantized import DequantizedCheckpoint
from porting.weight_table import Layout, Rule, flat_kernel, linear, norm, to_flax, verify

TOWER_DTYPES = ("float32", "bfloat16")
# Fields of a tower's config in transformers that ours has under the same name.
FIELDS = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"),
    *("num_position_embeddings", "in_channels", "patch_size", "temporal_patch_size"),
    *("spatial_merge_size", "hidden_act"),
)
ROPE, DEEPSTACK = "rope_parameters", "deepstack_visual_indexes"
# Buffers that are computed from the config, but saved by some versions of transformers.
BUFFERS = ("rotary_pos_emb.inv_freq",)


@dataclass(frozen=True)
class VisionCheckpoint:
    """The tower of a checkpoint: its family, its shape, and its location in files and model."""

    model_type: str
    config: VisionConfig
    place: AdaptableLinears[Family]

    @property
    def key_prefix(self) -> str:
        """Prefix of the tower's keys in the checkpoint's files."""
        return self.place.key_prefix

    @property
    def live_prefix(self) -> str:
        """The tower's path in the HF model that `from_pretrained` returns."""
        return self.place.family.live


def patch_layout(config: VisionConfig) -> Layout:
    """Layout of the patch embedding, a Conv3d [D, C, tp, p, p]."""
    p = config.patch_size
    return flat_kernel((config.hidden_size, config.in_channels, config.temporal_patch_size, p, p))


def vision_table(config: VisionConfig, family: Family = FAMILIES["qwen3_vl"]) -> list[Rule]:
    """Every tensor of the tower, in the order of the forward pass, with the family's names."""
    rules = [
        Rule("patch_embed.proj.weight", "patch_embed.kernel", patch_layout(config)),
        Rule("patch_embed.proj.bias", "patch_embed.bias"),
        Rule("pos_embed.weight", "pos_embed.embedding"),
    ]
    block, depth = "blocks.{layer}.", config.depth
    rules += norm(f"{block}norm1", "blocks.norm1", depth)
    rules += linear(f"{block}attn.qkv", "blocks.attn.qkv", depth)
    rules += linear(f"{block}attn.proj", "blocks.attn.proj", depth)
    rules += norm(f"{block}norm2", "blocks.norm2", depth)
    rules += linear(f"{block}mlp.linear_fc1", "blocks.mlp.linear_fc1", depth)
    rules += linear(f"{block}mlp.linear_fc2", "blocks.mlp.linear_fc2", depth)
    named = partial(family.family_name, single_linear=config.single_linear)
    for merger in config.mergers:
        if not config.single_linear:
            rules += norm(named(f"{merger}.norm"), f"{merger}.norm")
            rules += linear(named(f"{merger}.linear_fc1"), f"{merger}.linear_fc1")
        rules += linear(named(f"{merger}.linear_fc2"), f"{merger}.linear_fc2")
    return rules


def vision_config(directory: str | Path, dtype: str = "float32") -> tuple[str, VisionConfig]:
    """The checkpoint's model_type and the shape of its tower, from config.json.

    Whether Mergers are single Linears is not in config.json (see `describe`).

    Raises:
        UserError: the family or the tower's shape is not supported.
    """
    directory = local_checkpoint(directory, "none")
    # Checked first, because transformers supports more families.
    family = read_family(directory)
    path, vision = directory / "config.json", tower_fields(directory, family)
    try:
        act, config = vision.hidden_act, _from_hf(vision, family, dtype)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: does not describe a vision tower ({error})") from error
    if not isinstance(config.rope_theta, int | float) or not 0 < config.rope_theta < math.inf:
        raise UserError(f"{path}: rope_theta is {config.rope_theta!r}, expected a positive number")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act {act!r} is not one of {[*ACTIVATIONS]}")
    if faults := config_faults(config):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return str(read_model_type(directory)), config


def tower_fields(directory: Path, family: Family) -> Any:
    """The fields of the tower's config, with transformers' values for those not in config.json.

    Raises:
        UserError: transformers is needed and cannot read it.
    """
    needed = {*FIELDS, ROPE} | ({DEEPSTACK} if family.deepstack else set())
    part = read_json(directory / "config.json")
    for name in ("thinker_config", "vision_config"):
        part = part.get(name, part) if isinstance(part, dict) else {}
    # Importing transformers takes a second.
    if isinstance(part, dict) and needed <= set(part):
        rope = part[ROPE]
        if isinstance(rope, dict) and "rope_theta" in rope:
            return SimpleNamespace(**{name: part[name] for name in needed})
    hf = load_config(directory)
    thinker = getattr(hf, "thinker_config", hf)
    return getattr(thinker, "vision_config", thinker)


def _from_hf(vision: Any, family: Family, dtype: str) -> VisionConfig:
    return VisionConfig(
        **{name: getattr(vision, name) for name in FIELDS},
        deepstack_indexes=tuple(getattr(vision, DEEPSTACK)) if family.deepstack else (),
        rope_theta=getattr(vision, ROPE)["rope_theta"],
        dtype=dtype,
    )


def config_faults(config: VisionConfig) -> list[str]:
    """Values that a tower cannot have."""
    sizes = {
        name: getattr(config, name)
        for name in ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size")
    }
    patch = ("in_channels", "temporal_patch_size", "patch_size", "spatial_merge_size")
    sizes |= {name: getattr(config, name) for name in (*patch, "num_position_embeddings")}
    # transformers' configs allow a list as patch size, but its towers do not.
    faults = size_faults(sizes)
    if not faults and config.hidden_size % (4 * config.num_heads):
        faults.append(
            f"num_heads {config.num_heads} does not divide hidden_size {config.hidden_size} into "
            "heads of a multiple of 4"
        )
    if not faults and config.table_side**2 != config.num_position_embeddings:
        faults.append(f"num_position_embeddings {config.num_position_embeddings} is no square")
    levels = config.deepstack_indexes
    if not faults and any(type(i) is not int or not 0 <= i < config.depth for i in levels):
        faults.append(f"deepstack_visual_indexes {list(config.deepstack_indexes)} leave the depth")
    return faults


def describe(directory: str | Path, dtype: str = "float32") -> VisionCheckpoint:
    """The tower of a checkpoint, from config.json and the headers of the files.

    Raises:
        UserError: the directory is not a checkpoint of a supported family with a vision tower.
    """
    model_type, config = vision_config(directory, dtype)
    directory = local_checkpoint(directory)
    refuse_adapter_beside(directory)
    with Checkpoint(directory) as checkpoint:
        place = locate(checkpoint, FAMILIES[model_type])
    config = replace(config, single_linear=place.single_linear)
    return VisionCheckpoint(model_type, config, place)


@cache
def abstract_tower(config: VisionConfig) -> Qwen3VisionTower:
    """The tower with shapes and dtypes instead of arrays, which takes no memory.

    Made once for a config: not to be changed.
    """
    return nnx.eval_shape(lambda: Qwen3VisionTower(config, rngs=nnx.Rngs(0)))


def load_vision_tower(checkpoint_dir: str | Path, dtype: str = "float32") -> Qwen3VisionTower:
    """Load the vision tower of a Qwen3 checkpoint into Flax.

    Args:
        checkpoint_dir: directory with config.json and one or more safetensors files in float32,
            float16 or bfloat16, or quantised (see `porting.quantized`): a full model of one of
            `FAMILIES`, or its tower only; or the id of one on the hub (see `local_checkpoint`).
            Only vision tensors are read, one at a time, directly into the tower's memory.
        dtype: dtype of the tower's weights and activations, `float32` or `bfloat16`.

    Raises:
        UserError: the directory is not a checkpoint of a supported family, or `dtype` is not
            supported.
        CheckpointError: tensors are missing, unexpected or wrong; names all of them.
    """
    if not isinstance(dtype, str) or dtype not in TOWER_DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(TOWER_DTYPES)}")
    found = describe(path_argument("checkpoint_dir", checkpoint_dir), dtype)
    graphdef, abstract = nnx.split(abstract_tower(found.config))
    table = vision_table(found.config, found.place.family)
    with DequantizedCheckpoint(local_checkpoint(checkpoint_dir)) as checkpoint:
        state = to_flax(table, checkpoint, found.key_prefix, abstract, BUFFERS)
    return nnx.merge(graphdef, state)


def verify_vision_tower(checkpoint_dir: str | Path) -> None:
    """Check all that `load_vision_tower` checks, without keeping the weights; raises as it."""
    found = describe(checkpoint_dir)
    abstract = nnx.state(abstract_tower(found.config))
    table = vision_table(found.config, found.place.family)
    with DequantizedCheckpoint(local_checkpoint(checkpoint_dir)) as checkpoint:
        verify(table, checkpoint, found.key_prefix, abstract, BUFFERS)
