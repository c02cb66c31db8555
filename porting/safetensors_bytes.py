"""Safetensors files whose bytes depend on their content only, and digests of tensors."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save

# Name of the metadata that has the digest of the rest of a file.
SEAL = "sha256"

Tensor = Shaped[np.ndarray, "..."]


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; equal arguments give equal bytes.

    The library writes several metadata in a random order, so the header is written again, sorted.
    """
    header, data = _parts(save(dict(tensors), metadata=dict(metadata)))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data must begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def sealed_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with the digest of its whole content; see `seal`."""
    digest = seal(to_bytes(tensors, metadata))
    return to_bytes(tensors, {**metadata, SEAL: digest})


def seal(file: bytes) -> str:
    """SHA-256 (hex) of the content of a safetensors file, but for the digest in its metadata."""
    header, data = _parts(file)
    header["__metadata__"].pop(SEAL, None)
    text = json.dumps(header, sort_keys=True).encode()
    return hashlib.sha256(text + b"\n" + data).hexdigest()


def _parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, data) of a safetensors file."""
    start = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:start]), file[start:]


def digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's bytes in its own dtype."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
