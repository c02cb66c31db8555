"""Hugging Face's CLIP as OpenCLIP's files, written by hand: its package cannot be installed."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jax_unlearn.runtime.assets import CLIP_ASSETS
from jax_unlearn.runtime.hub import OPEN_CONFIG, SINGLE
from porting.open_clip import OPEN_WEIGHTS

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def open_block(tensors, torch_prefix):
    """One block by OpenCLIP's names: q, k and v are one parameter."""
    found = {}
    for kind in ("weight", "bias"):
        for ours, theirs in BLOCK.items():
            found[f"{ours}.{kind}"] = tensors[f"{torch_prefix}.{theirs}.{kind}"]
        parts = [tensors[f"{torch_prefix}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
        found[f"attn.in_proj_{kind}"] = np.concatenate(parts)
    return found


def open_clip_tensors(tensors):
    """Hugging Face's weights by OpenCLIP's names, written by hand: its package is not here."""
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    found = {
        "logit_scale": tensors["logit_scale"],
        "token_embedding.weight": tensors[f"{text}.token_embedding.weight"],
        "positional_embedding": tensors[f"{text}.position_embedding.weight"],
        "text_projection": np.ascontiguousarray(tensors["text_projection.weight"].T),
        "visual.class_embedding": tensors[f"{vision}.class_embedding"],
        "visual.conv1.weight": tensors[f"{vision}.patch_embedding.weight"],
        "visual.positional_embedding": tensors[f"{vision}.position_embedding.weight"],
        "visual.proj": np.ascontiguousarray(tensors["visual_projection.weight"].T),
    }
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        found[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
    for side, prefix in (("text", ""), ("vision", "visual.")):
        layers = {key.split(".")[3] for key in tensors if key.startswith(f"{side}_model.encoder.")}
        for i in layers:
            parts = open_block(tensors, f"{side}_model.encoder.layers.{i}")
            found |= {f"{prefix}transformer.resblocks.{i}.{k}": v for k, v in parts.items()}
    return found


def open_clip_of_bundled(folder: Path) -> Path:
    """The bundled CLIP as open_clip pushes a model to the hub: config, weights and tokenizer."""
    source = CLIP_ASSETS / "checkpoint"
    config = json.loads((source / "config.json").read_text())
    images = json.loads((source / "preprocessor_config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    parts = [
        {
            "width": part["hidden_size"],
            "layers": part["num_hidden_layers"],
            "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
        }
        for part in (text, vision)
    ]
    parts[0] |= {"heads": text["num_attention_heads"], "vocab_size": text["vocab_size"]}
    parts[0]["context_length"] = text["max_position_embeddings"]
    parts[1] |= {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    parts[1]["head_width"] = vision["hidden_size"] // vision["num_attention_heads"]
    model = {"embed_dim": config["projection_dim"], "quick_gelu": True}
    content = {
        "model_cfg": model | {"text_cfg": parts[0], "vision_cfg": parts[1]},
        "preprocess_cfg": {
            "mean": images["image_mean"],
            "std": images["image_std"],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    folder.mkdir()
    save_file(open_clip_tensors(load_file(source / SINGLE)), folder / OPEN_WEIGHTS)
    (folder / OPEN_CONFIG).write_text(json.dumps(content))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return folder
