"""Facts of a checkpoint: its tower, adaptable Linears and memory; checks what a run would read."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax_unlearn.data.batches import PATCHES
from jax_unlearn.data.clip_preprocess import load_clip_preprocessor
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.data.scan import printable
from jax_unlearn.features.clip_encoder import load_tokenizer
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.models.clip.encoders import ClipTextConfig, ClipVisionConfig
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runs.inspect.accelerators import find_chips
from jax_unlearn.runs.inspect.memory_plan import plan
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from porting import is_clip
from porting.clip import clip_config, verify_clip
from porting.open_clip import open_clip_weights
from porting.quantized import DequantizedCheckpoint
from porting.qwen3_vision import VisionCheckpoint, describe, verify_vision_tower

# Patches (16 × 16) of an image of one megapixel, the example size for memory.
EXAMPLE_PATCHES = 4096
MAX_PIXELS = ExtractionSettings.max_pixels


def inspect(
    directory: Path, chips: str | None = None, dtype: str = "bfloat16", fsdp: int = 1
) -> dict[str, Any]:
    """The facts of a checkpoint, as a tree of names and values.

    Args:
        directory: the checkpoint.
        chips: accelerators to plan a pass of the tower for (see `accelerators.find_chips`).
        dtype: data type of the tower on them.
        fsdp: number of devices over which the blocks' weights are sharded.

    Raises:
        UserError: a run would refuse the weights, or no pass can be planned.
    """
    if is_clip(directory):
        if chips:
            raise UserError("--plan: is for Qwen3 towers; CLIP runs in batches of 64; leave it out")
        return inspect_clip(directory)
    facts = inspect_tower(directory)
    if chips:
        found = find_chips(chips, fsdp)
        config = replace(describe(directory).config, dtype=dtype, attention=found.kernel)
        shared = f", fsdp {fsdp}" if fsdp > 1 else ""
        facts[f"on {chips} in {dtype}{shared}"] = plan(config, found)
    return facts


def inspect_clip(directory: Path) -> dict[str, Any]:
    """The facts of a CLIP: its text and image encoder or one of them, with their projections."""
    verify_clip(directory)
    config = clip_config(directory)
    local = local_checkpoint(directory)
    with DequantizedCheckpoint(local, open_clip_weights(local)) as checkpoint:
        sizes = {key: math.prod(checkpoint.shape(key)) for key in checkpoint}
        dtypes = sorted({checkpoint.dtype(key) for key in checkpoint})
    text, vision, width = config.text, config.vision, config.projection_dim
    facts: dict[str, Any] = {
        "family": "clip",
        "dtype": ", ".join(dtypes),
        "parameters": sum(sizes.values()),
    }
    linears, reads = {}, {}
    if text is not None:
        facts["text"] = f"{layers(text)}, at most {text.max_position_embeddings} tokens"
        linears["text_projection"] = f"{text.hidden_size} → {width}"
        reads["reads names"] = answer(lambda: load_tokenizer(directory, text))
    if vision is not None:
        side = vision.image_size
        facts["vision"] = f"{layers(vision)}, {side} pixels in patches of {vision.patch_size}"
        linears["visual_projection"] = f"{vision.hidden_size} → {width}"
        reads["reads images"] = answer(lambda: load_clip_preprocessor(directory, side))
    return facts | {"E (projection_dim)": width, "adaptable Linears": linears, **reads}


def answer(load: Callable[[], object]) -> str:
    """Yes, or why a run would refuse it."""
    try:
        load()
    except UserError as error:
        return f"no: {error}"
    return "yes"


def layers(side: ClipTextConfig | ClipVisionConfig) -> str:
    return f"{side.num_hidden_layers} layers of {side.hidden_size}, {side.hidden_act}"


def inspect_tower(directory: Path) -> dict[str, Any]:
    """The facts of a Qwen3 tower."""
    tower = describe(directory)
    config = tower.config
    verify_vision_tower(directory)
    with DequantizedCheckpoint(local_checkpoint(directory)) as checkpoint:
        sizes = {key: math.prod(checkpoint.shape(key)) for key in checkpoint}
        dtypes = sorted({checkpoint.dtype(key) for key in checkpoint})
        missing = sorted(set(checkpoint.missing.values()))
    vision = sum(n for key, n in sizes.items() if key.startswith(tower.key_prefix))
    return {
        "family": tower.model_type,
        "dtype": ", ".join(dtypes),
        "parameters": {"vision": vision, "all": sum(sizes.values())},
        **({"files without vision, not here": ", ".join(missing)} if missing else {}),
        "keys begin with": tower.key_prefix,
        "last layer": f"{tower.live_prefix}blocks.{config.depth - 1}",
        "D (hidden_size)": config.hidden_size,
        "D_in (every Linear of a Merger)": config.merged_size,
        "E (out_hidden_size)": config.out_hidden_size,
        "mergers": mergers(tower),
        "adaptable Linears": linears(config),
        "memory in MiB": memory(config, vision),
        "reads images": answer(lambda: load_preprocessor(directory, config, MAX_PIXELS)),
    }


def mergers(tower: VisionCheckpoint) -> dict[str, str]:
    """The source block and structure of each Merger, by its path in the HF model."""
    config, family = tower.config, tower.place.family
    layers = (config.depth - 1, *config.deepstack_indexes)
    return {
        f"{family.live}{family.family_merger(name)}": f"blocks.{layer} → {structure(tower, name)}"
        for name, layer in zip(config.mergers, layers, strict=True)
    }


def structure(tower: VisionCheckpoint, merger: str) -> str:
    """A Merger's modules in order, with the family's names."""
    side = tower.config.spatial_merge_size
    merge = f"{side}×{side} merge"
    if tower.config.single_linear:
        return f"{merge} → one Linear"
    norm, fc1, fc2 = tower.place.family.parts
    first = f"{norm} → {merge}" if merger == "merger" else f"{merge} → {norm}"
    return f"{first} → {fc1} → GELU (erf) → {fc2}"


def linears(config: VisionConfig) -> dict[str, str]:
    """Adaptable Linears, as D_in → D_out."""
    width = config.merged_size
    out = {"linear_fc1": width, "linear_fc2": config.out_hidden_size}
    return {name: f"{width} → {out[name.rpartition('.')[2]]}" for name in config.linears}


def memory(config: VisionConfig, parameters: int) -> dict[str, float]:
    """Memory of a float32 run in MiB: weights, a batch's widest activations, cached rows."""
    merged = EXAMPLE_PATCHES // config.spatial_merge_size**2
    rows = len(config.mergers) * merged * config.merged_size
    entries = {
        "tower": parameters,
        # The widest activations are those of a block's MLP; attention keeps blocks of scores only.
        f"activations of a batch of {PATCHES} patches": PATCHES
        * (config.intermediate_size + 4 * config.hidden_size),
        f"cached rows of 1000 images of {EXAMPLE_PATCHES} patches, tokens": 1000 * rows,
        "cached rows of 1000 images, images": 1000 * rows // merged,
    }
    return {name: round(4 * count / 2**20, 1) for name, count in entries.items()}


def lines(facts: dict[str, Any], indent: int = 0) -> list[str]:
    """The tree as indented text."""
    out = []
    for key, value in facts.items():
        if isinstance(value, dict):
            out += [f"{' ' * indent}{key}:", *lines(value, indent + 2)]
        else:
            shown = f"{value:,}" if isinstance(value, int) else value
            # A checkpoint's own texts are among them.
            out.append(f"{' ' * indent}{key}: {printable(str(shown))}")
    return out
