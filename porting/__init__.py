"""Load torch checkpoints into Flax; save adapters for PEFT and merged checkpoints."""

from porting.checkpoint import CheckpointError
from porting.clip import is_clip, load_clip
from porting.merge import merge_checkpoint, unmerge_checkpoint
from porting.peft import load_peft, save_peft
from porting.qwen3_vision import load_vision_tower
from porting.state_dict import to_torch
from porting.weight_digests import linear_digests

__all__ = [
    "CheckpointError",
    "is_clip",
    "linear_digests",
    "load_clip",
    "load_peft",
    "load_vision_tower",
    "merge_checkpoint",
    "save_peft",
    "to_torch",
    "unmerge_checkpoint",
]
