"""A checkpoint directory: its config, and its safetensors shards, read lazily by key."""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from jax_unlearn.runtime.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Bytes that are read at once.
PIECE = 2**22
LFS_POINTER = b"version https://git-lfs"

# Where each tensor's bytes begin and end in a file, by its key.
Ranges = dict[str, tuple[int, int]]


class CheckpointError(UserError):
    """Every fault of a checkpoint, collected and raised once."""

    def __init__(self, directory: Path, faults: list[str]):
        self.faults = faults
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        super().__init__(f"{directory}: {shown}")


class Checkpoint:
    """Tensors of a checkpoint by key. Use as a context manager; only headers are read up front.

    Args:
        directory: of the checkpoint.
        file: the one of its files to read, by name; all that transformers would read where it is
            not given.

    Raises:
        CheckpointError: no such directory, no safetensors, an index that cannot be followed, or a
            shard that is truncated.
    """

    def __init__(self, directory: str | Path, file: str | None = None):
        self.directory, self.file = Path(directory), file
        self.shard_of: dict[str, Path] = {}
        # What is wrong with a key: a fault only for who reads it.
        self.doubts: dict[str, str] = {}
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._ranges: dict[Path, Ranges] = {}

    def __enter__(self) -> "Checkpoint":
        faults: list[str] = []
        index = {} if self.file else read_index(self.directory, faults)
        only = [self.directory / self.file] if self.file else []
        for shard in only or shards(self.directory, index, faults):
            self._open_shard(shard, faults)
        for key, name in index.items():
            shard = self.directory / name
            if shard in self._open and self.shard_of.get(key) != shard:
                wrong = f"{INDEX} places {key} in {name}, which does not hold it"
                self.doubts.setdefault(key, wrong)
        if faults:
            self._stack.close()
            raise CheckpointError(self.directory, faults)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _open_shard(self, shard: Path, faults: list[str]) -> None:
        try:
            handle = self._stack.enter_context(safe_open(shard, framework="numpy"))
        except (SafetensorError, OSError) as error:
            faults.append(unreadable(shard, error))
            return
        self._open[shard] = handle
        self._ranges[shard] = byte_ranges(shard)
        for key in handle.keys():  # noqa: SIM118  (a safe_open handle is not a mapping)
            if key in self.shard_of:
                both = f"{key} is in {self.shard_of[key].name} and in {shard.name}"
                self.doubts.setdefault(key, both)
            self.shard_of[key] = shard

    def __iter__(self) -> Iterator[str]:
        return iter(self.shard_of)

    def __contains__(self, key: str) -> bool:
        return key in self.shard_of

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """NumPy's name of the dtype, or safetensors' own where we do not read it."""
        name: str = self._slice(key).get_dtype()
        return DTYPES.get(name, name)

    def dtype_faults(self, key: str) -> list[str]:
        """A dtype that `read` does not know."""
        if (dtype := self.dtype(key)) in NUMPY:
            return []
        return [f"{key} has dtype {dtype}, expected {', '.join(DTYPES)}"]

    def read(self, key: str) -> Shaped[np.ndarray, "..."]:
        """One tensor, in its own dtype (see `dtype_faults`; bfloat16 through ml_dtypes)."""
        tensor = np.empty(self.shape(key), NUMPY[self.dtype(key)])
        self.read_into(key, tensor)
        return tensor

    def read_into(self, key: str, out: Shaped[np.ndarray, "..."]) -> None:
        """Fill `out`, of the tensor's shape and any dtype, a few megabytes at a time.

        Read as a file: safetensors maps it into memory, and the pages of the map would stay beside
        the copies of all tensors until the shard is closed.
        """
        shard, dtype = self.shard_of[key], np.dtype(NUMPY[self.dtype(key)])
        out = np.atleast_1d(out)
        row = math.prod(out.shape[1:]) * dtype.itemsize
        rows = max(1, PIECE // max(1, row))
        with shard.open("rb") as file:
            file.seek(self._ranges[shard][key][0])
            for i in range(0, len(out), rows):
                part = out[i : i + rows]
                part[...] = np.fromfile(file, dtype, part.size).reshape(part.shape)

    def _slice(self, key: str) -> Any:
        return self._open[self.shard_of[key]].get_slice(key)


def unreadable(shard: Path, error: Exception) -> str:
    """Why a shard cannot be opened; a clone without Git LFS has a pointer in its place."""
    with shard.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return f"{shard.name} is a Git LFS pointer and holds no weights; run `git lfs pull`"
    return f"{shard.name} cannot be read ({error}); copy the file again"


def refuse_adapter_beside(directory: Path) -> None:
    """Refuse a checkpoint with an adapter beside it: transformers would apply it, and we do not.

    Raises:
        UserError: names the file.
    """
    path = directory / "adapter_config.json"
    if path.is_file():
        raise UserError(
            f"{path}: an adapter lies beside the checkpoint, and transformers applies it at "
            "loading; merge it into the weights (PEFT's merge_and_unload), or move it away"
        )


def byte_ranges(shard: Path) -> Ranges:
    """Where the bytes of each tensor of a safetensors file begin and end.

    Source: the format's description, https://huggingface.co/docs/safetensors: eight bytes of
    header length (little endian), the header as JSON, then the data that its offsets count from.
    """
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {key: entry["data_offsets"] for key, entry in header.items()}
    return {key: (8 + length + start, 8 + length + end) for key, (start, end) in places.items()}


def read_index(directory: Path, faults: list[str]) -> dict[str, str]:
    """The index's key → file name; empty where the checkpoint has none."""
    path = directory / INDEX
    if not path.is_file():
        return {}
    try:
        return {key: str(name) for key, name in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{INDEX} is not an index ({error!r})")
        return {}


def shards(directory: Path, index: dict[str, str], faults: list[str]) -> list[Path]:
    """The files to open: the index's, each a plain name inside the directory, or the only one."""
    if not directory.is_dir():
        raise CheckpointError(directory, ["no such directory"])
    if not index:
        if (directory / SINGLE).is_file():
            # What else lies there, such as OpenCLIP's copy, transformers does not read.
            return [directory / SINGLE]
        found = sorted(directory.glob("*.safetensors"))
        if not found:
            faults.append("no *.safetensors here; save the model with safe_serialization=True")
        return found
    if (directory / SINGLE).is_file() and SINGLE not in index.values():
        faults.append(f"holds {SINGLE} and {INDEX}, and transformers reads the first; remove one")
    paths = []
    for name in sorted(set(index.values())):
        if name != Path(name).name or name in {"", ".."}:
            faults.append(f"{INDEX} names {name!r}, which is not a file of this directory")
        elif not (directory / name).is_file():
            faults.append(f"{name} is missing; {INDEX} names it")
        else:
            paths.append(directory / name)
    return paths


def config_path(directory: Path) -> Path:
    """config.json of a checkpoint.

    Raises:
        UserError: no such directory, or no such file in it.
    """
    path = directory / "config.json"
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the folder that holds config.json")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {directory} is not a checkpoint")
    return path


def load_config(directory: Path) -> Any:
    """The checkpoint's config through transformers, whose defaults fill what the file leaves out.

    Raises:
        UserError: no such directory, no config.json, or one that transformers does not know.
    """
    path = config_path(directory)

    # Not at the top: transformers imports torch where it is installed, and we must not.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (KeyError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not a config that transformers can read ({text})") from error
