"""Digests of a checkpoint's adapted Linears, as they are stored."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from porting.adaptable_linears import locate, read_adaptable_family
from porting.checkpoint import PIECE, Checkpoint, byte_ranges
from porting.open_clip import open_clip_weights

# Keys of OpenCLIP's projections, which have no bias.
OPEN_KEYS = {"text_projection": "text_projection", "visual_projection": "visual.proj"}


def linear_digests(checkpoint_dir: str | Path, linears: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of the stored tensors of each Linear, by canonical name.

    They include its bias and the scales of a quantised weight, with their dtypes and shapes, but
    not the prefix of their keys.

    Args:
        checkpoint_dir: directory of the checkpoint.
        linears: canonical names.

    Raises:
        UserError: the checkpoint cannot be read, or is of an unsupported family.
        ValueError: the checkpoint has no such Linear.
    """
    directory = Path(checkpoint_dir)
    file = open_clip_weights(directory)
    with Checkpoint(directory, file) as checkpoint:
        if file:
            return {name: _digest(checkpoint, OPEN_KEYS[name]) for name in linears}
        place = locate(checkpoint, read_adaptable_family(directory))
        return {n: _digest(checkpoint, place.key(n).removesuffix("weight")) for n in linears}


def _digest(checkpoint: Checkpoint, stem: str) -> str:
    total = hashlib.sha256()
    for key in sorted(key for key in checkpoint if key.startswith(stem)):
        shape, dtype = checkpoint.shape(key), checkpoint.dtype(key)
        total.update(f"{key.removeprefix(stem)} {dtype} {shape}\n".encode())
        shard = checkpoint.shard_of[key]
        start, end = byte_ranges(shard)[key]
        with shard.open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(PIECE, end - start))):
                total.update(piece)
                start += len(piece)
    return total.hexdigest()
