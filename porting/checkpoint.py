"""Read a checkpoint directory: its config, and tensors of its safetensors shards by key."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import INDEX, OPEN_CONFIG, SINGLE
from jax_unlearn.runtime.no_torch import import_transformers
from jax_unlearn.runtime.text_files import read_json

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Bytes read at once.
PIECE = 2**22
# Far above every model's; a program for more would never end.
MOST_LAYERS, MOST = 1000, 2**24
# Bytes of a file's name on every file system.
LONGEST_NAME = 255
# Endings of files of weights that torch.save writes.
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONFIGS = ("config.json", OPEN_CONFIG)
LFS_POINTER = b"version https://git-lfs"

# (start, end) of each tensor's bytes in a file, by key.
Ranges = dict[str, tuple[int, int]]


class CheckpointError(UserError):
    """All faults of a checkpoint, collected and raised together."""

    def __init__(self, directory: Path, faults: list[str]):
        self.faults = faults
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        super().__init__(f"{directory}: {shown}")


class Checkpoint:
    """Tensors of a checkpoint by key. Use as a context manager; only headers are read up front.

    Args:
        directory: directory of the checkpoint.
        file: name of the only file to read; by default the files that transformers would read.

    Raises:
        CheckpointError: there is no such directory or no safetensors file, the index is invalid, or
            a shard is truncated. A shard that is missing is a fault only if its tensors are read.
    """

    def __init__(self, directory: str | Path, file: str | None = None):
        self.directory, self.file = Path(directory), file
        self.shard_of: dict[str, Path] = {}
        # Fault of a key, which matters only if its tensor is read.
        self.doubts: dict[str, str] = {}
        # File by key, of files that the index names and that are not there: a snapshot of the hub
        # may have the shards of the tower only.
        self.missing: dict[str, str] = {}
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._ranges: dict[Path, Ranges] = {}

    def __enter__(self) -> "Checkpoint":
        faults: list[str] = []
        index = {} if self.file else read_index(self.directory, faults)
        for shard in shards(self.directory, index, faults, self.file):
            self._open_shard(shard, faults)
        # A name that is a fault need not be one that the system takes.
        for key, name in () if faults else index.items():
            shard = self.directory / name
            if not shard.is_file():
                self.missing[key] = name
            elif self.shard_of.get(key) != shard:
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
        """NumPy's name of the dtype, or safetensors' name if it is not supported."""
        name: str = self._slice(key).get_dtype()
        return DTYPES.get(name, name)

    def dtype_faults(self, key: str) -> list[str]:
        """A fault if the tensor has a dtype that `read` does not support."""
        if (dtype := self.dtype(key)) in NUMPY:
            return []
        return [f"{key} has dtype {dtype}, expected {', '.join(DTYPES)}"]

    def read(self, key: str) -> Shaped[np.ndarray, "..."]:
        """Read a tensor in its own dtype (see `dtype_faults`; bfloat16 is ml_dtypes')."""
        tensor = np.empty(self.shape(key), NUMPY[self.dtype(key)])
        self.read_into(key, tensor)
        return tensor

    def stored(self, key: str) -> Shaped[np.ndarray, "..."]:
        """A tensor as it is stored: in its own dtype, or its bytes if that is not supported."""
        if self.dtype(key) in NUMPY:
            return Checkpoint.read(self, key)
        shard = self.shard_of[key]
        start, end = self._ranges[shard][key]
        return np.fromfile(shard, np.uint8, end - start, offset=start)

    def read_into(self, key: str, out: Shaped[np.ndarray, "..."]) -> None:
        """Read a tensor into `out`, of the same shape and any dtype, a few megabytes at a time.

        Not through safetensors, which maps the file into memory: the mapped pages would stay in
        memory next to the copies until the shard is closed.
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


def missing_files(names: Iterable[str]) -> list[str]:
    """A fault for each file that the index names and that is not there."""
    return [f"{name} is missing; {INDEX} names it" for name in sorted(set(names))]


def unreadable(shard: Path, error: Exception) -> str:
    """The reason why a shard cannot be opened; it may be a Git LFS pointer."""
    if shard.is_file():
        with shard.open("rb") as file:
            first = file.read(len(LFS_POINTER))
        if first == LFS_POINTER:
            return f"{shard.name} is a Git LFS pointer and holds no weights; run `git lfs pull`"
    return f"{shard.name} cannot be read ({error}); copy the file again"


def no_weights(directory: Path, sought: str = "*.safetensors") -> str:
    """Fault of a checkpoint without the file sought; names a pickle that is there instead."""
    if pickles := sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES):
        return (
            f"{pickles[0]} is a pickle, which can run code and is not read, and there is no "
            f"{sought}; load the model where you trust it and save it with safe_serialization=True"
        )
    return f"no {sought} here; save the model with safe_serialization=True"


def refuse_adapter_beside(directory: Path) -> None:
    """Refuse a checkpoint directory that also has an adapter, which transformers would apply.

    Raises:
        UserError: there is an adapter; names its file.
    """
    path = directory / "adapter_config.json"
    if path.is_file():
        raise UserError(
            f"{path}: an adapter lies beside the checkpoint, and transformers applies it at "
            "loading; merge it into the weights (PEFT's merge_and_unload), or move it away"
        )


def byte_ranges(shard: Path) -> Ranges:
    """(start, end) of the bytes of each tensor of a safetensors file.

    Source: the description of the format, https://huggingface.co/docs/safetensors: eight bytes of
    header length (little endian), the header as JSON, then the data, from which offsets count.
    """
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {key: entry["data_offsets"] for key, entry in header.items()}
    return {key: (8 + length + start, 8 + length + end) for key, (start, end) in places.items()}


def read_index(directory: Path, faults: list[str]) -> dict[str, str]:
    """File name by key, from the index; empty if the checkpoint has no index."""
    path = directory / INDEX
    if not path.is_file():
        return {}
    try:
        return {key: str(name) for key, name in read_json(path)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{INDEX} is not an index ({error!r})")
        return {}


def shards(
    directory: Path, index: dict[str, str], faults: list[str], file: str | None = None
) -> list[Path]:
    """The files to open: `file`, those of the index that are in the directory, or the only one."""
    if not directory.is_dir():
        raise CheckpointError(directory, ["no such directory"])
    if file is not None:
        if not (directory / file).is_file():
            faults.append(no_weights(directory, file))
            return []
        return inside(directory, [file], faults)
    if not index:
        if (directory / SINGLE).is_file():
            # transformers ignores other files, such as OpenCLIP's copy of the weights.
            return inside(directory, [SINGLE], faults)
        found = sorted(path.name for path in directory.glob("*.safetensors"))
        if not found:
            faults.append(no_weights(directory))
        return inside(directory, found, faults)
    if (directory / SINGLE).is_file() and SINGLE not in index.values():
        faults.append(f"holds {SINGLE} and {INDEX}, and transformers reads the first; remove one")
    names = []
    for name in sorted(set(index.values())):
        if is_file_name(name):
            names.append(name)
        else:
            shown = name if len(name) <= 60 else f"{name[:60]}…"
            faults.append(f"{INDEX} names {shown!r}, which is not a file of this directory")
    return inside(directory, names, faults)


def inside(directory: Path, names: Iterable[str], faults: list[str]) -> list[Path]:
    """The files of these names that are there; a fault for each that is a link to elsewhere."""
    paths = []
    for path in (directory / name for name in names):
        if leads_out(path, directory):
            faults.append(
                f"{path.name} is a link to {path.resolve()}, outside the directory; put the file "
                "there"
            )
        elif path.is_file():
            paths.append(path)
    return paths


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in a directory, and not a path or no name at all."""
    plain = name == Path(name).name and name not in ("", "..") and "\0" not in name
    return plain and len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME


def size_faults(sizes: Mapping[str, Any]) -> list[str]:
    """Sizes of a config that no model has: not a positive integer, or absurdly large."""
    largest = {"depth": MOST_LAYERS, "num_hidden_layers": MOST_LAYERS}
    return [
        f"{name} is {size!r}"
        for name, size in sizes.items()
        if type(size) is not int or not 1 <= size <= largest.get(name, MOST)
    ]


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a file is a link to a place outside its checkpoint.

    The files of a snapshot in the hub's cache are links to the blobs of the same repository, which
    belong to it: REPOSITORY/snapshots/COMMIT/NAME and REPOSITORY/blobs/DIGEST. In a directory all
    of whose files are links, those that lie beside the target of its config belong to it.
    """
    home, target = directory.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"
    if home.parent.name == "snapshots" and target.is_relative_to(blobs):
        return False
    configs = (directory / name for name in CONFIGS)
    beside = {config.resolve().parent for config in configs if config.is_file()}
    return not target.is_relative_to(home) and target.parent not in beside


def config_path(directory: Path) -> Path:
    """The path of a checkpoint's config.json.

    Raises:
        UserError: the directory or the file does not exist.
    """
    path = directory / "config.json"
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the folder that holds config.json")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {directory} is not a checkpoint")
    return path


def load_config(directory: Path) -> Any:
    """Load a checkpoint's config with transformers, including its defaults.

    Raises:
        UserError: there is no config.json, or transformers cannot read it.
    """
    path = config_path(directory)

    auto = import_transformers().AutoConfig
    try:
        return auto.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises almost any exception for a damaged config.
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not a config that transformers can read ({text})") from error
