"""The Mergers of a GGUF file as llama.cpp's conversion with --mmproj writes it.

Source of the names: https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py and
gguf-py/gguf/constants.py (V_MMPROJ, V_DS_FC1, V_DS_FC2).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runtime.errors import UserError

Array = Float32[np.ndarray, "..."]
# llama.cpp's names of a Merger's two Linears: the main one's, and those of DeepStack by the layer.
MAIN = {"linear_fc1": "mm.0", "linear_fc2": "mm.2"}
DEEPSTACK = {"linear_fc1": "v.deepstack.{}.fc1", "linear_fc2": "v.deepstack.{}.fc2"}


def gguf_names(config: VisionConfig) -> dict[str, str]:
    """llama.cpp's name of each adaptable Linear, by its canonical name."""
    names = {f"merger.{linear}": name for linear, name in MAIN.items()}
    for index, layer in enumerate(config.deepstack_indexes):
        for linear, name in DEEPSTACK.items():
            names[f"deepstack_merger_list.{index}.{linear}"] = name.format(layer)
    return names


class GgufProjectors:
    """The Mergers' Linears of a GGUF file.

    Args:
        path: the file.
        config: shape of the tower that it was made from.

    Raises:
        UserError: the package gguf is missing, or the file is no GGUF or lacks these tensors.
    """

    def __init__(self, path: Path, config: VisionConfig) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UserError(
                f"{path}: needs the package gguf to be read; pip install gguf"
            ) from error
        self._gguf, self.path = gguf, path
        try:
            tensors = {one.name: one for one in gguf.GGUFReader(path).tensors}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{path}: cannot be read as GGUF ({error})") from error
        names = {
            f"{linear}.{part}": f"{name}.{part}"
            for linear, name in gguf_names(config).items()
            for part in ("weight", "bias")
        }
        self._tensors = {ours: tensors[name] for ours, name in names.items() if name in tensors}
        if missing := sorted(set(names) - set(self._tensors)):
            raise UserError(
                f"{path}: has no tensor {names[missing[0]]}; give the file that "
                "`convert_hf_to_gguf.py --mmproj` wrote for a tower of this shape"
            )

    def read(self, name: str) -> Array:
        """A weight or bias as float32, by its Linear's canonical name and `.weight` or `.bias`."""
        one = self._tensors[name]
        data = self._gguf.dequantize(np.asarray(one.data), one.tensor_type)
        return np.asarray(data, np.float32).reshape(tuple(one.shape)[::-1])

    def rounded(self, name: str, tensor: Array) -> Array:
        """A tensor as it would be in this file, after the loss of its data type.

        Raises:
            UserError: the data type cannot be imitated.
        """
        kind = self._tensors[name].tensor_type
        try:
            data = self._gguf.quantize(np.ascontiguousarray(tensor, np.float32), kind)
            found = self._gguf.dequantize(data, kind)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{self.path}: {name} has type {kind.name}, whose loss cannot be told from an "
                "edit; convert with --outtype f32, bf16, f16 or q8_0"
            ) from error
        return np.asarray(found, np.float32).reshape(tensor.shape)
