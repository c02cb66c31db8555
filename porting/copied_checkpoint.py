"""Copy a checkpoint's directory without the weights that would contradict the changed ones."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from porting.checkpoint import byte_ranges, leads_out

# Forms in which weights are published. A copy in another form than the one that is read would hold
# the original weights next to the changed ones.
WEIGHTS = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".ot", ".pt", ".pth"}
    | {".safetensors", ".tflite"}
)
# Git's objects hold the weights of every version; earlier versions of this package kept the
# originals of a merge in a folder beside the weights.
EARLIER_UNDO = "jax_unlearn_undo"
FOLDERS = frozenset({".git", EARLIER_UNDO})


def copy_tree(source: Path, target: Path, keep: Collection[str]) -> list[str]:
    """Copy every file below `source`, except other weights than `keep`.

    Symbolic links that lead out of the checkpoint are kept as links. The files of a snapshot in a
    Hugging Face cache are links to its blobs; those are copied.

    Args:
        source: directory of the checkpoint.
        target: an existing empty directory.
        keep: names of the weight files to copy, which lie in `source` itself.

    Returns:
        Relative paths of the files and folders that were left out.
    """
    left_out: list[str] = []
    _copy(source, target, source, keep, left_out)
    return left_out


def _copy(
    source: Path, target: Path, root: Path, keep: Collection[str], left_out: list[str]
) -> None:
    for entry in sorted(source.iterdir()):
        place, name = target / entry.name, str(entry.relative_to(root))
        is_weights = entry.suffix.lower() in WEIGHTS and not entry.is_dir()
        if entry.name in FOLDERS:
            left_out.append(f"{name}/")
        elif is_weights and name not in keep:
            left_out.append(name)
        elif entry.is_symlink() and leads_out(entry, root):
            place.symlink_to(entry.resolve())
        elif entry.is_symlink() and not entry.is_file():
            place.symlink_to(os.path.relpath(entry.resolve(), entry.parent.resolve()))
        elif entry.is_dir():
            place.mkdir()
            _copy(entry, place, root, keep, left_out)
        else:
            # copyfile, without permissions: the copy of a read-only file must be writable.
            shutil.copyfile(entry, place)


def patch(shard: Path, key: str, tensor: Shaped[np.ndarray, "..."]) -> None:
    """Replace the bytes of one tensor in a safetensors file; dtype and shape must be the same."""
    data = np.ascontiguousarray(tensor).tobytes()
    start, end = byte_ranges(shard)[key]
    assert end - start == len(data), f"{key}: {end - start} bytes in {shard}, {len(data)} new"
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(data)
