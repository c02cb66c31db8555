"""Real Hugging Face models of a few thousand parameters, drawn so that mistakes show."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from jax_unlearn.lora import LoraAdapter, LoraPair
from porting.checkpoint import Checkpoint

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
    "out_hidden_size": 24,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
}
# Two images that are not square, a video of two frames; the 5 × 5 table is interpolated for all.
GRID = np.array([[1, 4, 6], [2, 6, 4], [1, 8, 2]])
LINEARS = {"merger": 24, "deepstack_merger_list.0": 24, "deepstack_merger_list.1": 24}
MERGED = 4 * VISION["hidden_size"]


def config(**vision: Any) -> Qwen3VLConfig:
    tokens = dict(zip(("image", "video", "vision_start", "vision_end"), range(90, 94), strict=True))
    return Qwen3VLConfig(
        vision_config=VISION | vision,
        text_config=TEXT,
        **{f"{name}_token_id": token for name, token in tokens.items()},
    )


def save_processor(directory: Path, smallest: int, largest: int) -> None:
    """The image processor's settings for this tower; the sizes are areas in pixels."""
    settings = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": VISION["patch_size"],
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": smallest, "longest_edge": largest},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))


def model(config: Qwen3VLConfig, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """All parameters are normal with deviation 0.3, biases and norms too (the norms about 1)."""
    model = Qwen3VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise + float("norm" in name and name.endswith("weight")))
    return model.requires_grad_(False)


def images(
    grid: Int[np.ndarray, "n 3"] = GRID, patch_dim: int = 96, seed: int = 0
) -> Float[np.ndarray, "patches patch"]:
    """Pixel values as the image processor lays them out."""
    rows = int(grid.prod(axis=1).sum())
    return np.random.default_rng(seed).normal(size=(rows, patch_dim)).astype(np.float32)


def tower_outputs(visual: torch.nn.Module, pixels: np.ndarray, grid: np.ndarray) -> Any:
    """What the Hugging Face tower returns."""
    dtype = next(visual.parameters()).dtype
    return visual(torch.from_numpy(pixels).to(dtype), torch.from_numpy(grid))


def captured(
    modules: Mapping[str, torch.nn.Module], visual: torch.nn.Module, pixels: Any, grid: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(input, output) of some of the tower's modules, by the names given."""
    seen = {}
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: Any, args: Any, out: Any, name: str = name) -> None:
                seen[name] = (args[0].numpy(), out.numpy())

            stack.callback(module.register_forward_hook(hook).remove)
        tower_outputs(visual, pixels, grid)
    return seen


def adapter(rank: int = 2, alpha: float = 3.0, seed: int = 0) -> LoraAdapter:
    """A random adapter of every Linear of every Merger: a and b both far from zero."""
    random = np.random.default_rng(seed)
    pairs = {}
    for merger, width in LINEARS.items():
        for linear, e in (("linear_fc1", MERGED), ("linear_fc2", width)):
            a = random.normal(size=(rank, MERGED)).astype(np.float32) / 10
            b = random.normal(size=(e, rank)).astype(np.float32) / 10
            pairs[f"{merger}.{linear}"] = LoraPair(a=a, b=b)
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def tensors(directory: Path) -> dict[str, np.ndarray]:
    with Checkpoint(directory) as checkpoint:
        return {key: checkpoint.read(key) for key in checkpoint}
