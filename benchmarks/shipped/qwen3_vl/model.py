"""The small Qwen3-VL, and a batched forward pass of its tower for images of 64x64."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from .images import SIDE

PATCH, MERGE, TEMPORAL = 8, 2, 2
GRID = SIDE // PATCH
MERGED = (GRID // MERGE) ** 2

VISION = {
    "depth": 4,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TEMPORAL,
    "out_hidden_size": 128,
    "num_position_embeddings": GRID**2,
    "deepstack_visual_indexes": [1, 2],
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A model with random weights and the tokenizer's special ids."""
    ids = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    config = Qwen3VLConfig(
        text_config={**TEXT, **ends, "vocab_size": len(tokenizer)},
        vision_config=VISION,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen3VLForConditionalGeneration(config)
    for key, value in ends.items():
        setattr(model.generation_config, key, value)
    return model


def build_processor() -> Qwen2VLImageProcessorPil:
    """A processor that does not resize 64x64, and accepts images of 32x32 to 256x256 pixels."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256},
    )


def patchify(images: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] -> [B, 64, 3 * 2 * 8 * 8], as the image processor returns them."""
    x = images.float().mul_(1 / 127.5).sub_(1).permute(0, 3, 1, 2)
    side = GRID // MERGE
    x = x.reshape(len(x), 3, side, MERGE, PATCH, side, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    return x.expand(*x.shape[:6], TEMPORAL, PATCH, PATCH).reshape(len(x), GRID**2, -1)


class BatchedTower(nn.Module):
    """Qwen3VLVisionModel for equal grids: [B, 64, P] -> its Mergers' outputs, each [B, 16, E].

    It uses the model's own modules. Hugging Face's forward pass computes attention one image after
    the other, which makes training on a CPU about twice as slow.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        grid = torch.tensor([[1, GRID, GRID]])
        index, weight = get_vision_interpolation_indices_and_weights(
            grid, GRID, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
        )
        cos, sin = visual.rotary_pos_emb(weight, get_vision_position_ids(grid, MERGE))
        for name, value in {"index": index, "weight": weight, "cos": cos, "sin": sin}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        """The main Merger's output first, then the DeepStack ones."""
        visual = self.visual
        project = visual.patch_embed.proj
        position = (visual.pos_embed(self.index) * self.weight[..., None]).sum(1)
        x = functional.linear(patches, project.weight.flatten(1), project.bias) + position
        deep = []
        for i, block in enumerate(visual.blocks):
            x = x + self._attend(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            if i in visual.deepstack_visual_indexes:
                deep.append(visual.deepstack_merger_list[len(deep)](x))
        return tuple(y.view(len(x), MERGED, -1) for y in (visual.merger(x), *deep))

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        qkv = attention.qkv(x).view(*x.shape[:2], 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, self.cos, self.sin)
        heads = (t.transpose(1, 2) for t in (query, key, value))
        mixed = functional.scaled_dot_product_attention(*heads)
        return attention.proj(mixed.transpose(1, 2).flatten(2))
