"""Digests of a checkpoint's adapted Linears, as they are stored."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runtime.arguments import path_argument
from porting.adaptable_linears import has_weights, locate_in, open_weights
from porting.checkpoint import Checkpoint


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
    directory = path_argument("checkpoint_dir", checkpoint_dir)
    if isinstance(linears, str) or not isinstance(linears, Iterable):
        raise TypeError(f"linears: expected several names, got {linears!r}")
    linears = list(linears)
    if others := [name for name in linears if not isinstance(name, str)]:
        raise TypeError(f"linears: expected names, got {others[0]!r}")
    with open_weights(directory) as checkpoint:
        place = locate_in(checkpoint)
        return {n: _digest(checkpoint, place.key(n).removesuffix("weight")) for n in linears}


def digest_of_base(adapter: LoraAdapter, base: Path) -> str | None:
    """SHA-256 (hex) of the Linears that an adapter changes, as they are in its base.

    Returns:
        The digest; None if the base has no local weights.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if not has_weights(base):
        return None
    found = linear_digests(base, sorted(adapter.pairs))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _digest(checkpoint: Checkpoint, stem: str) -> str:
    total = hashlib.sha256()
    for key in sorted(key for key in checkpoint if key.startswith(stem)):
        shape, dtype = checkpoint.shape(key), checkpoint.dtype(key)
        total.update(f"{key.removeprefix(stem)} {dtype} {shape}\n".encode())
        total.update(checkpoint.stored(key).tobytes())
    return total.hexdigest()
