"""torch layout ↔ Flax layout: checkpoints in, adapters and merged checkpoints out."""

from porting.checkpoint import CheckpointError
from porting.clip import is_clip, load_clip
from porting.merge import merge_checkpoint, unmerge_checkpoint
from porting.peft import load_peft, save_peft
from porting.qwen3_vision import load_vision_tower

__all__ = [
    "CheckpointError",
    "is_clip",
    "load_clip",
    "load_peft",
    "load_vision_tower",
    "merge_checkpoint",
    "save_peft",
    "unmerge_checkpoint",
]
