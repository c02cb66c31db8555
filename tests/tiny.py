"""Real Hugging Face models of a few thousand parameters, drawn so that mistakes show."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3VLConfig

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.models.qwen3_vision.tower import VisionFeatures
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
MOE = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
RECURRENT = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "linear_attention"],
}
# What each family's language model needs; the hyper-connections are of qwen4_exp alone.
TEXTS = {
    "qwen3_vl": TEXT,
    "qwen3_vl_moe": TEXT | MOE,
    "qwen3_omni_moe": TEXT | MOE,
    "qwen3_5": TEXT | RECURRENT,
    "qwen3_5_moe": TEXT | RECURRENT | MOE,
    "qwen4_exp": TEXT | RECURRENT | MOE | {"hc_count": 2, "hc_lowrank": 4},
}
CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
    "clip": "CLIPModel",
    "clip_text_model": "CLIPTextModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2Model",
}
# Qwen3-Omni's other parts: what hears, what speaks, and what makes sound of it.
AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "d_model": 16,
    "output_dim": 24,
    "max_source_positions": 20,
    "downsample_hidden_size": 8,
}
TALKER = {
    "text_config": TEXT | MOE,
    "code_predictor_config": TEXT | {"num_code_groups": 4},
    "num_code_groups": 4,
    "thinker_hidden_size": 24,
    "spatial_merge_size": 2,
}
CODE2WAV = {
    "codebook_size": 10,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_quantizers": 4,
    "upsample_rates": [2],
    "upsampling_ratios": [2],
    "decoder_dim": 8,
}
# Sizes that all differ, 2 pixels that no patch covers, and an epsilon large enough to be noticed.
CLIP_TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "bos_token_id": 48,
    "layer_norm_eps": 1e-3,
    "projection_dim": 24,
}
CLIP_VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 6,
    "layer_norm_eps": 1e-2,
    "projection_dim": 24,
}
# Two images that are not square, a video of two frames; the 5 × 5 table is interpolated for all.
GRID = np.array([[1, 4, 6], [2, 6, 4], [1, 8, 2]])
# Every kind of input; the shapes are in patches.
GRIDS = {
    "one image": [[1, 4, 6]],
    "two images": [[1, 4, 6], [1, 8, 2]],
    "video": [[3, 6, 4]],
    "image and video": [[1, 4, 6], [3, 2, 8]],
}
# The families whose towers feed several layers of the language model.
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe")
LINEARS = {"merger": 24, "deepstack_merger_list.0": 24, "deepstack_merger_list.1": 24}
MERGED = 4 * VISION["hidden_size"]


def config(**vision: Any) -> Qwen3VLConfig:
    tokens = dict(zip(("image", "video", "vision_start", "vision_end"), range(90, 94), strict=True))
    return Qwen3VLConfig(
        vision_config=VISION | vision,
        text_config=TEXT,
        **{f"{name}_token_id": token for name, token in tokens.items()},
    )


def family_config(model_type: str, **vision: Any) -> PreTrainedConfig:
    """The config of a tiny model of any family; Qwen3-Omni's is whole, speech and all."""
    shape = VISION | vision
    if model_type not in DEEPSTACK:
        del shape["deepstack_visual_indexes"]
    parts = {"vision_config": shape, "text_config": TEXTS[model_type]}
    if model_type == "qwen3_omni_moe":
        thinker = parts | {"audio_config": AUDIO}
        parts = {"thinker_config": thinker, "talker_config": TALKER, "code2wav_config": CODE2WAV}
    return transformers.AutoConfig.for_model(model_type, **parts)


def clip_config(
    eos: int = 40, text_act: str = "quick_gelu", vision_act: str = "gelu"
) -> transformers.CLIPConfig:
    """A tiny CLIP; `eos` is not the highest id, so that the two rules for the end differ."""
    return transformers.CLIPConfig(
        text_config=CLIP_TEXT | {"eos_token_id": eos, "hidden_act": text_act},
        vision_config=CLIP_VISION | {"hidden_act": vision_act},
        projection_dim=24,
    )


def clip_texts(
    end: int = 40, pad: int = 40, seed: int = 0
) -> tuple[Int[np.ndarray, "5 12"], Int[np.ndarray, "5 12"]]:
    """Texts of several lengths and their mask, as a tokenizer pads them."""
    ids = np.random.default_rng(seed).integers(1, 50, (5, 12))
    ids[ids == end] -= 1
    lengths = np.array([12, 3, 7, 1, 9])
    after = np.arange(12) - lengths[:, None]
    ids[after >= 0], ids[after == -1] = pad, end
    return ids, (after < 0).astype(np.int64)


def clip_images(seed: int = 0) -> Float[np.ndarray, "2 3 20 20"]:
    return np.random.default_rng(seed).normal(size=(2, 3, 20, 20)).astype(np.float32)


def tower_of(model: PreTrainedModel) -> PreTrainedModel:
    """The vision tower of a model of any family."""
    return getattr(model, "thinker", model).model.visual


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


def model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """All parameters are normal with deviation 0.3, biases and norms too (the norms about 1)."""
    model = getattr(transformers, CLASSES[config.model_type])(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            parameter.copy_(0.3 * noise + float(is_norm and name.endswith("weight")))
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
    shapes = {}
    for merger, width in LINEARS.items():
        shapes |= {
            f"{merger}.linear_fc1": (MERGED, MERGED),
            f"{merger}.linear_fc2": (width, MERGED),
        }
    return random_adapter(shapes, rank, alpha, seed)


def random_adapter(
    shapes: Mapping[str, tuple[int, int]], rank: int = 2, alpha: float = 3.0, seed: int = 0
) -> LoraAdapter:
    """The same for Linears of any shapes, (E, D_in) by name."""
    random = np.random.default_rng(seed)
    pairs = {}
    for name, (e, d_in) in shapes.items():
        a = random.normal(size=(rank, d_in)).astype(np.float32) / 10
        b = random.normal(size=(e, rank)).astype(np.float32) / 10
        pairs[name] = LoraPair(a=a, b=b)
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def close_to_largest(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """Every entry within `tolerance` of the largest of theirs."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def same_features(ours: VisionFeatures, theirs: Any, tolerance: float = 1e-4) -> None:
    """Ours against Hugging Face's output, every feature; some families have no DeepStack."""
    deepstack = getattr(theirs, "deepstack_features", ())
    close_to_largest(ours.last_hidden_state, theirs.last_hidden_state.detach(), tolerance)
    close_to_largest(ours.pooler_output, theirs.pooler_output.detach(), tolerance)
    assert len(ours.deepstack_features) == len(deepstack)
    for mine, other in zip(ours.deepstack_features, deepstack, strict=True):
        close_to_largest(mine, other.detach(), tolerance)


def tensors(directory: Path) -> dict[str, np.ndarray]:
    with Checkpoint(directory) as checkpoint:
        return {key: checkpoint.read(key) for key in checkpoint}
