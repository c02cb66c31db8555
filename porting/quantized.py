"""Read quantised weights as floating-point numbers, where the format defines them exactly.

Supported: integers or 8-bit floats with a scale per tensor, row or block (FP8 checkpoints and
compressed-tensors), bitsandbytes' 8-bit, and its 4-bit nf4 and fp4. Others are refused.

Sources: https://huggingface.co/docs/transformers/quantization (fine-grained FP8, bitsandbytes),
https://huggingface.co/docs/bitsandbytes (blockwise and vectorwise quantisation), and the tensors
that bitsandbytes 0.50 writes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

from porting.checkpoint import NUMPY, Checkpoint, CheckpointError

WEIGHT = ".weight"
# Dtypes with a scale, by safetensors' name.
SCALED = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "I8": np.int8}
SCALES = ("_scale", "_scale_inv")
# Scale of activations, which has no effect on the weights.
OF_ACTIVATIONS = ".input_scale"
ROW_MAXIMA, ROW_FORMAT = ".SCB", ".weight_format"
# bitsandbytes multiplies by this constant, 1 / 127.
INT8 = np.float32(7.874015718698502e-3)
STATE = ".quant_state.bitsandbytes__"
# Suffixes of a module's tensors in formats that are not supported.
OTHERS = {".qweight": "GPTQ or AWQ", ".weight_packed": "compressed-tensors, packed"}
BLOCK = 128

Values = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Quantized:
    """A quantised weight: its shape, and the keys of the tensors that belong to it."""

    shape: tuple[int, ...]
    parts: frozenset[str]


class DequantizedCheckpoint(Checkpoint):
    """A checkpoint whose quantised weights are read as floating-point tensors.

    The tensors that belong to them, such as scales, are not listed. Of other quantised formats each
    module is listed by the key of its weight, with a fault of its dtype.
    """

    def __enter__(self) -> "DequantizedCheckpoint":
        super().__enter__()
        self.quantized: dict[str, Quantized] = {}
        self.unsupported: dict[str, str] = {}
        for key in [*super().__iter__()]:
            if found := self._quantized(key):
                self.quantized[key] = found
            for suffix, name in OTHERS.items():
                if key.endswith(suffix):
                    self.unsupported[key.removesuffix(suffix) + WEIGHT] = name
        parts = frozenset[str]().union(*(one.parts for one in self.quantized.values()))
        modules = {key.removesuffix(WEIGHT) for key in self.unsupported}
        of_modules = {key for key in self.shard_of if key.rpartition(".")[0] in modules}
        hidden = (parts | of_modules) - {f"{module}.bias" for module in modules}
        self._keys = (set(self.shard_of) - hidden) | set(self.unsupported)
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self.quantized[key].shape if key in self.quantized else super().shape(key)

    def dtype_faults(self, key: str) -> list[str]:
        if name := self.unsupported.get(key):
            return [f"{key} is quantised ({name}), which is not supported: use the original model"]
        if key in self.quantized:
            return []
        quantized = (dtype := self.dtype(key)) in SCALED or dtype == "U8"
        if quantized and key.endswith(WEIGHT):
            return [f"{key} has dtype {dtype}: it is quantised, and its scales are missing"]
        return super().dtype_faults(key)

    def read_into(self, key: str, out: Shaped[np.ndarray, "..."]) -> None:
        if key not in self.quantized:
            super().read_into(key, out)
            return
        try:
            out[...] = self._dequantized(key)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            fault = f"{key} is quantised, and what belongs to it does not fit ({error!r})"
            raise CheckpointError(self.directory, [fault]) from error

    def _quantized(self, key: str) -> Quantized | None:
        if not key.endswith(WEIGHT):
            return None
        module, dtype = key.removesuffix(WEIGHT), self.dtype(key)
        if dtype in SCALED:
            scales = [key + suffix for suffix in SCALES] + [module + ROW_MAXIMA]
            if not any(scale in self.shard_of for scale in scales):
                return None
            extra = [module + OF_ACTIVATIONS, module + ROW_FORMAT]
            return Quantized(super().shape(key), frozenset(scales + extra))
        if dtype == "U8" and (state := self._state(key)):
            parts = frozenset(part for part in self.shard_of if part.startswith(f"{key}."))
            return Quantized(state["shape"], parts)
        return None

    def _dequantized(self, key: str) -> Values:
        if self.dtype(key) in SCALED:
            return self._scaled(key)
        return self._four_bit(key)

    def _scaled(self, key: str) -> Values:
        """q · s in float32, with a scale per tensor, row or block of rows and columns."""
        values = self._raw(key, SCALED[self.dtype(key)]).astype(np.float32)
        for name in (key + suffix for suffix in SCALES):
            if name in self.shard_of:
                return values * spread(self.read(name).astype(np.float32), values.shape)
        maxima = self.read(key.removesuffix(WEIGHT) + ROW_MAXIMA).astype(np.float32)
        return values * maxima[:, None] * INT8

    def _four_bit(self, key: str) -> Values:
        """bitsandbytes: two indices of a table of 16 values per byte, a maximum per block."""
        state = self._state(key)
        packed = self._raw(key, np.uint8).ravel()
        table = self.read(f"{key}.quant_map")
        count = math.prod(state["shape"])
        values = table[np.stack([packed >> 4, packed & 15], axis=-1).ravel()[:count]]
        maxima = self._maxima(key, state)
        scaled = values * np.repeat(maxima, state["blocksize"])[:count]
        return scaled.astype(NUMPY[state["dtype"]]).reshape(state["shape"])

    def _maxima(self, key: str, state: dict[str, Any]) -> Float[np.ndarray, " blocks"]:
        """The maximum of each block, which may itself be quantised."""
        if "nested_blocksize" not in state:
            return self.read(f"{key}.absmax")
        table, maxima = self.read(f"{key}.nested_quant_map"), self.read(f"{key}.nested_absmax")
        indices = self._raw(f"{key}.absmax", np.uint8)
        outer = np.repeat(maxima, state["nested_blocksize"])[: indices.size]
        return table[indices] * outer + np.float32(state["nested_offset"])

    def _state(self, key: str) -> dict[str, Any]:
        """bitsandbytes' description of a 4-bit tensor, JSON in a tensor of bytes."""
        names = [part for part in self.shard_of if part.startswith(key + STATE)]
        if not names:
            return {}
        try:
            state = json.loads(self._raw(names[0], np.uint8).tobytes())
            return dict(state) | {"shape": tuple(map(int, state["shape"]))}
        except (KeyError, TypeError, ValueError) as error:
            fault = f"{names[0]} does not describe a quantised tensor ({error!r})"
            raise CheckpointError(self.directory, [fault]) from error

    def _raw(self, key: str, dtype: Any) -> Shaped[np.ndarray, "..."]:
        """A tensor's bytes as another dtype, in its shape."""
        return self.stored(key).view(dtype).reshape(super().shape(key))


def spread(scale: Values, shape: tuple[int, ...]) -> Values:
    """Repeat scales to the shape of their weight [out, in].

    Args:
        scale: one scale, one per row ([out] or [out, 1]), or one per block of 128 × 128.
        shape: the weight's shape.

    Raises:
        ValueError: the scales are of another shape.
    """
    if scale.size == 1:
        return scale.reshape(1, 1)
    if scale.shape in (shape[:1], (shape[0], 1)):
        return scale.reshape(-1, 1)
    if scale.shape != (blocks := tuple(-(-size // BLOCK) for size in shape)):
        raise ValueError(f"scales of shape {scale.shape}, expected {blocks}, one per row, or one")
    rows = np.repeat(scale, BLOCK, axis=0)[: shape[0]]
    return np.repeat(rows, BLOCK, axis=1)[:, : shape[1]]
