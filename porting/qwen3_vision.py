"""The Qwen3-VL tower's weight table, its places in a checkpoint, and `load_vision_tower`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jax_unlearn.errors import UserError
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.models.qwen3_vision import ACTIVATIONS, Qwen3VisionTower, VisionConfig
from porting.checkpoint import Checkpoint, CheckpointError, load_config
from porting.table import Layout, Rule, linear, norm, to_flax

# Prefixes that a tower's keys are seen with: the full model of today, of yesterday, and the tower
# alone, whose keys begin with one of TOWER.
PREFIXES = ("model.visual.", "visual.", "")
TOWER = ("patch_embed.", "pos_embed.", "blocks.", "merger.", "deepstack_merger_list.")

# Where the tower lives in the HF model class that this model_type loads into.
LIVE_PREFIX = {"qwen3_vl": "model.visual.", "qwen3_vl_vision": ""}
TOWER_DTYPES = ("float32", "bfloat16")

# The Linears that an adapter may change, by our names for them.
LINEAR = re.compile(r"(merger|deepstack_merger_list\.\d+)\.linear_fc[12]")


@dataclass(frozen=True)
class VisionCheckpoint:
    """What a checkpoint directory says of its tower. `key_prefix` is the one of its files."""

    model_type: str
    config: VisionConfig
    key_prefix: str

    @property
    def live_prefix(self) -> str:
        """The tower's path in the HF model that `from_pretrained` makes of this checkpoint."""
        return LIVE_PREFIX[self.model_type]


def patch_layout(config: VisionConfig) -> Layout:
    """Conv3d [D, C, tp, p, p] ↔ the Linear [C·tp·p·p, D] that it is when kernel equals stride."""
    p = config.patch_size
    kernel = (config.hidden_size, config.in_channels, config.temporal_patch_size, p, p)
    return Layout(
        lambda x: x.reshape(config.hidden_size, -1).T,
        lambda x: np.ascontiguousarray(x.T).reshape(kernel),
        lambda _: kernel,
    )


def vision_table(config: VisionConfig) -> list[Rule]:
    """Every tensor of the tower, in the order of the forward."""
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
    for merger in config.mergers:
        rules += norm(f"{merger}.norm", f"{merger}.norm")
        rules += linear(f"{merger}.linear_fc1", f"{merger}.linear_fc1")
        rules += linear(f"{merger}.linear_fc2", f"{merger}.linear_fc2")
    return rules


def vision_config(directory: str | Path, dtype: str = "float32") -> tuple[str, VisionConfig]:
    """The checkpoint's model_type and the shape of its tower.

    Raises:
        UserError: the family is not known, or the config has no vision tower.
    """
    hf = load_config(directory)
    path = Path(directory) / "config.json"
    if hf.model_type not in LIVE_PREFIX:
        raise UserError(
            f"{path}: model_type {hf.model_type!r} has no Qwen3 vision tower that we know; "
            f"known: {', '.join(LIVE_PREFIX)}"
        )
    vision = getattr(hf, "vision_config", hf)
    if vision.hidden_act not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act {vision.hidden_act!r} is not one of {[*ACTIVATIONS]}")
    config = _from_hf(vision, dtype)
    if faults := config_faults(config):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return hf.model_type, config


def _from_hf(vision: Any, dtype: str) -> VisionConfig:
    return VisionConfig(
        depth=vision.depth,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_heads=vision.num_heads,
        out_hidden_size=vision.out_hidden_size,
        num_position_embeddings=vision.num_position_embeddings,
        deepstack_indexes=tuple(vision.deepstack_visual_indexes),
        in_channels=vision.in_channels,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        hidden_act=vision.hidden_act,
        rope_theta=vision.rope_parameters["rope_theta"],
        dtype=dtype,
    )


def config_faults(config: VisionConfig) -> list[str]:
    """Numbers that no tower can have."""
    sizes = {
        name: getattr(config, name)
        for name in ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size")
    }
    sizes |= {name: getattr(config, name) for name in ("patch_size", "spatial_merge_size")}
    faults = [f"{name} is {value}" for name, value in sizes.items() if value < 1]
    if not faults and config.hidden_size % (4 * config.num_heads):
        faults.append(
            f"num_heads {config.num_heads} does not divide hidden_size {config.hidden_size} into "
            "heads of a multiple of 4"
        )
    if config.table_side**2 != config.num_position_embeddings:
        faults.append(f"num_position_embeddings {config.num_position_embeddings} is no square")
    if any(not 0 <= index < config.depth for index in config.deepstack_indexes):
        faults.append(f"deepstack_visual_indexes {list(config.deepstack_indexes)} leave the depth")
    return faults


def key_prefix(checkpoint: Checkpoint) -> str:
    """The prefix of the tower's keys.

    Raises:
        CheckpointError: no key of the checkpoint belongs to a vision tower.
    """
    for prefix in PREFIXES:
        if any(key.startswith(tuple(prefix + part for part in TOWER)) for key in checkpoint):
            return prefix
    fault = "holds no vision tensor (model.visual.…, visual.… or the tower's own keys): text only?"
    raise CheckpointError(checkpoint.directory, [fault])


def describe(directory: str | Path) -> VisionCheckpoint:
    """What `inspect`, the exporters and the loader need to know, from headers alone."""
    model_type, config = vision_config(directory)
    with Checkpoint(directory) as checkpoint:
        return VisionCheckpoint(model_type, config, key_prefix(checkpoint))


def live_prefix(base: str | Path) -> str:
    """The tower's path in the HF model of a base checkpoint; `qwen3_vl`'s for one of the Hub.

    Raises:
        UserError: `base` is a local checkpoint of a family that we do not know.
    """
    path = Path(base) / "config.json"
    if not path.is_file():
        return LIVE_PREFIX["qwen3_vl"]
    try:
        model_type = json.loads(path.read_text())["model_type"]
        return LIVE_PREFIX[model_type]
    except (ValueError, KeyError, TypeError) as error:
        known = ", ".join(LIVE_PREFIX)
        raise UserError(f"{path}: no model_type that we know ({error}); known: {known}") from error


def linear_of_live_path(path: str) -> str | None:
    """Our name of the Linear at a path of the HF model; None if it is none of a Merger's."""
    for prefix in sorted(LIVE_PREFIX.values(), key=len, reverse=True):
        if path.startswith(prefix) and LINEAR.fullmatch(path.removeprefix(prefix)):
            return path.removeprefix(prefix)
    return None


def adapter_faults(adapter: LoraAdapter) -> list[str]:
    """What keeps an adapter from being written: no pair, a name of no Merger, a wrong rank."""
    faults = [] if adapter.pairs else ["it has no pair"]
    for name, pair in adapter.pairs.items():
        if not LINEAR.fullmatch(name):
            faults.append(f"{name} is not a Merger's linear_fc1 or linear_fc2")
        if (ranks := {pair.a.shape[0], pair.b.shape[1]}) != {adapter.rank}:
            faults.append(f"{name} has rank {sorted(ranks)}, the adapter {adapter.rank}")
    return faults


def abstract_tower(config: VisionConfig) -> Qwen3VisionTower:
    """The tower with shapes and dtypes for arrays; no memory is taken."""
    return nnx.eval_shape(lambda: Qwen3VisionTower(config, rngs=nnx.Rngs(0)))


def load_vision_tower(checkpoint_dir: str | Path, dtype: str = "float32") -> Qwen3VisionTower:
    """Port the vision tower of a Qwen3-VL checkpoint into Flax.

    Args:
        checkpoint_dir: config.json and one or more safetensors files, float32, float16 or bfloat16;
            the full model or the tower alone. Only the vision tensors are read.
        dtype: of the tower's weights and activations, `float32` or `bfloat16`.

    Raises:
        UserError: the directory is no checkpoint of a known family, or `dtype` is not one of ours.
        CheckpointError: names every tensor that is missing, unexpected, or wrong.
    """
    if dtype not in TOWER_DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(TOWER_DTYPES)}")
    _, config = vision_config(checkpoint_dir, dtype)
    graphdef, abstract = nnx.split(abstract_tower(config))
    with Checkpoint(checkpoint_dir) as checkpoint:
        state = to_flax(vision_table(config), checkpoint, key_prefix(checkpoint), abstract)
    return nnx.merge(graphdef, state)
