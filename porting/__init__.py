"""torch layout ↔ Flax layout: checkpoints in, adapters and merged checkpoints out."""

from porting.checkpoint import CheckpointError
from porting.qwen3_vision import load_vision_tower

__all__ = ["CheckpointError", "load_vision_tower"]
