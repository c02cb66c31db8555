"""The encoder of a CLIP checkpoint, whose weights are loaded at their first use."""

from functools import partial
from pathlib import Path

from rich.console import Console

import porting
from jax_unlearn.features.clip_encoder import ClipEncoder
from porting.clip import clip_config


def open_clip_encoder(checkpoint: Path, dtype: str, console: Console) -> ClipEncoder:
    """Open a CLIP checkpoint by its config.

    Raises:
        UserError: it has none that describes a CLIP.
    """
    load = partial(porting.load_clip, checkpoint, dtype)
    return ClipEncoder(clip_config(checkpoint, dtype), load, checkpoint, console)
