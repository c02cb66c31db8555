"""Safetensors files whose bytes depend on their content only, and digests of tensors."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save

Tensor = Shaped[np.ndarray, "..."]


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; equal arguments give equal bytes.

    The library writes several metadata in a random order, so the header is written again, sorted.
    """
    data = save(dict(tensors), metadata=dict(metadata))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data must begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's bytes in its own dtype."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
