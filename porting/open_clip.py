"""OpenCLIP's CLIP checkpoints: their config, and the weight table with their names.

Source: https://github.com/mlfoundations/open_clip, src/open_clip/model.py and transformer.py.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from jax_unlearn.models.clip.model import ClipConfig
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import OPEN_CONFIG
from jax_unlearn.runtime.text_files import read_json, read_text
from porting.checkpoint import SINGLE
from porting.weight_table import Rule, flat_kernel, linear, norm, transposed

OPEN_WEIGHTS = "open_clip_model.safetensors"
# eos_token_id in configs from before transformers handled CLIP's end-of-text token (PR #24773): a
# text ends at its highest id, as in OpenCLIP, whose config has no such field.
OLD_EOS = 2
# OpenCLIP's parameters [D_in, E], by the names of transformers' Linears.
OPEN_PROJECTIONS = {"text_projection": "text_projection", "visual_projection": "visual.proj"}

# The fields that we read, with OpenCLIP's defaults.
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
VISION = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "head_width": 64,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# Fields without effect on the forward pass, and values of other fields that a plain CLIP has.
HARMLESS = {"hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "patch_dropout", "init_logit_scale"}
PLAIN = {"pool_type": ("argmax", "tok"), "proj_type": ("linear",), "pos_embed_type": ("learnable",)}
MODEL = {"text_cfg", "vision_cfg", "embed_dim", "quick_gelu"}


def open_clip_weights(directory: Path) -> str | None:
    """Name of the file of OpenCLIP's weights; None if the checkpoint can be read by transformers.

    Next to OpenCLIP's files there may be those of transformers, or those of timm, whose config.json
    has no model_type.
    """
    if not (directory / OPEN_CONFIG).is_file():
        return None
    if '"model_type"' in _text(directory / "config.json"):
        return None
    return OPEN_WEIGHTS if (directory / OPEN_WEIGHTS).is_file() else SINGLE


def _text(path: Path) -> str:
    return read_text(path) if path.is_file() else ""


def open_clip_parts(directory: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The fields of the text and vision configs, and projection_dim, from OpenCLIP's config.

    Raises:
        UserError: the file is not a config of OpenCLIP, or the model is not a plain CLIP.
    """
    path = directory / OPEN_CONFIG
    try:
        model = read_json(path)["model_cfg"]
        text, vision = model["text_cfg"], model["vision_cfg"]
        act = "quick_gelu" if model.get("quick_gelu") else "gelu"
        parts = text_part(TEXT | text, act), vision_part(VISION | vision, act)
        width = model["embed_dim"]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not OpenCLIP's config of a CLIP ({error!r})") from error
    faults = plain_faults("model_cfg", model, MODEL)
    faults += plain_faults("text_cfg", text, TEXT) + plain_faults("vision_cfg", vision, VISION)
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    return *parts, width


def plain_faults(where: str, part: dict[str, Any], read: Collection[str]) -> list[str]:
    """Faults for fields that change the model, and for unknown fields unless they are falsy."""
    known = {*read, *HARMLESS}
    return [
        f"{where} {name} = {value!r} is not supported"
        for name, value in part.items()
        if name not in known and value and value not in PLAIN.get(name, ())
    ]


def text_part(text: dict[str, Any], act: str) -> dict[str, Any]:
    sizes = {"vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"]}
    end = {"eos_token_id": OLD_EOS, "highest_ends": True}
    return sizes | end | _part(text, text["heads"], act)


def vision_part(vision: dict[str, Any], act: str) -> dict[str, Any]:
    size = vision["image_size"]
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    sizes = {"image_size": size, "patch_size": vision["patch_size"]}
    return sizes | _part(vision, vision["width"] // vision["head_width"], act)


def _part(part: dict[str, Any], heads: int, act: str) -> dict[str, Any]:
    return {
        "hidden_size": part["width"],
        "intermediate_size": int(part["width"] * part["mlp_ratio"]),
        "num_hidden_layers": part["layers"],
        "num_attention_heads": heads,
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
    }


def open_clip_table(config: ClipConfig) -> list[Rule]:
    """Every tensor of the model, in the order of the forward pass, with OpenCLIP's names.

    The projections are parameters [d, E], in the layout of Flax's kernels.
    """
    text, vision = config.text_side(), config.vision_side()
    size, channels = vision.patch_size, vision.num_channels
    kernel = flat_kernel((vision.hidden_size, channels, size, size))
    return [
        Rule("token_embedding.weight", "text_model.token_embedding.embedding"),
        Rule("positional_embedding", "text_model.position_embedding.embedding"),
        *block_rules("", "text_model", text.num_hidden_layers),
        *norm("ln_final", "text_model.final_layer_norm"),
        Rule("text_projection", "text_projection.kernel"),
        Rule("visual.class_embedding", "vision_model.class_embedding"),
        Rule("visual.conv1.weight", "vision_model.patch_embedding.kernel", kernel),
        Rule("visual.positional_embedding", "vision_model.position_embedding.embedding"),
        *norm("visual.ln_pre", "vision_model.pre_layrnorm"),
        *block_rules("visual.", "vision_model", vision.num_hidden_layers),
        *norm("visual.ln_post", "vision_model.post_layernorm"),
        Rule("visual.proj", "visual_projection.kernel"),
        Rule("logit_scale", "logit_scale"),
    ]


def block_rules(prefix: str, side: str, depth: int) -> list[Rule]:
    torch, flax = f"{prefix}transformer.resblocks.{{layer}}", f"{side}.layers"
    qkv = f"{flax}.self_attn.qkv_proj"
    return [
        *norm(f"{torch}.ln_1", f"{flax}.layer_norm1", depth),
        Rule(f"{torch}.attn.in_proj_weight", f"{qkv}.kernel", transposed, depth),
        Rule(f"{torch}.attn.in_proj_bias", f"{qkv}.bias", layers=depth),
        *linear(f"{torch}.attn.out_proj", f"{flax}.self_attn.out_proj", depth),
        *norm(f"{torch}.ln_2", f"{flax}.layer_norm2", depth),
        *linear(f"{torch}.mlp.c_fc", f"{flax}.mlp.fc1", depth),
        *linear(f"{torch}.mlp.c_proj", f"{flax}.mlp.fc2", depth),
    ]
