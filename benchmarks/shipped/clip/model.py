"""The small CLIP, and its image encoder on a subset of patches."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from benchmarks.shipped.qwen3_vl.images import SIDE

from .tokenizer import CONTEXT

PATCH = 8
PROJECTION = 128
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A model with random weights and the tokenizer's special ids.

    With the end token's id in the config, Hugging Face pools at its first occurrence, so that
    padding with that token, as in CLIP, has no effect.
    """
    ends = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**TEXT, **ends, "projection_dim": PROJECTION},
        vision_config={**VISION, "projection_dim": PROJECTION},
        projection_dim=PROJECTION,
    )
    return CLIPModel(config)


def build_processor() -> CLIPImageProcessorPil:
    side = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)


def normalize(images: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] -> [B, 3, 64, 64], as the image processor returns them."""
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def pooled(model: CLIPModel, images: Tensor, patches: int | None = None) -> Tensor:
    """The image encoder's output before the projection, for uint8 [B, 64, 64, 3].

    Args:
        model: the model.
        images: the images.
        patches: number of patches to encode, leaving out uniform ones first; None for all. Half
            the patches take half the time, and most of a picture is empty page.
    """
    tower, pixels = model.vision_model, normalize(images)
    x = tower.embeddings(pixels)
    if patches is not None:
        seen = _liveliest(pixels, patches)[..., None].expand(-1, -1, x.shape[-1])
        x = torch.cat([x[:, :1], x[:, 1:].gather(1, seen)], dim=1)
    x = tower.encoder(inputs_embeds=tower.pre_layrnorm(x)).last_hidden_state
    return tower.post_layernorm(x[:, 0])


def _liveliest(pixels: Tensor, count: int) -> Tensor:
    """Indices [B, count] of a random choice among each image's patches with something drawn."""
    contrast = functional.max_pool2d(pixels, PATCH) + functional.max_pool2d(-pixels, PATCH)
    drawn = (contrast.amax(1) > 0).flatten(1)
    return (drawn + torch.rand(drawn.shape)).topk(count, dim=1).indices
