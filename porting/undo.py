"""The undo file of a merge: the original tensors and files, and what they belong to."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runtime.errors import UserError
from porting.checkpoint import Checkpoint, CheckpointError
from porting.safetensors_bytes import SEAL, Tensor, digest, seal, sealed_bytes

MARK = "jax_unlearn_undo"


@dataclass(frozen=True)
class UndoFacts:
    """The facts in an undo file.

    digests: SHA-256 of each merged tensor, by key. files: what the files had held that the merge
    wrote, by name; None for a file that did not exist. left_out: what was not copied.
    """

    digests: Mapping[str, str]
    files: Mapping[str, bytes | None]
    left_out: tuple[str, ...]


def undo_bytes(
    adapter: LoraAdapter, originals: Mapping[str, Tensor], facts: UndoFacts, version: str
) -> bytes:
    """The content of an undo file."""
    files = {
        name: None if content is None else base64.b64encode(content).decode()
        for name, content in facts.files.items()
    }
    metadata = {
        MARK: version,
        "alpha": repr(float(adapter.alpha)),
        "rank": str(adapter.rank),
        "digests": json.dumps(dict(facts.digests), sort_keys=True),
        "files": json.dumps(files, sort_keys=True),
        "left_out": json.dumps(list(facts.left_out)),
    }
    return sealed_bytes(originals, metadata)


def check_undo_place(undo: Path, *directories: Path) -> None:
    """Check that an undo file is outside some directories.

    Raises:
        UserError: it lies in one of them.
    """
    for directory in directories:
        if undo.resolve().is_relative_to(directory.resolve()):
            raise UserError(
                f"--undo {undo}: lies in {directory}, where a server would load it or it would be "
                "published with the weights; choose a place outside it"
            )


def read_undo(path: Path) -> UndoFacts:
    """The facts of an undo file.

    Raises:
        UserError: there is no such file, it is not an undo file of this version, or it has changed
            since it was written.
    """
    if not path.is_file():
        raise UserError(f"--undo {path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        if metadata[SEAL] != seal(path.read_bytes()):
            raise UserError(
                f"--undo {path}: has changed since it was written (its digest differs); restore it"
            )
        files = {
            name: None if content is None else base64.b64decode(content, validate=True)
            for name, content in json.loads(metadata["files"]).items()
        }
        if outside := [name for name in files if name != Path(name).name]:
            raise ValueError(f"{outside[0]} is not a file name")
        digests, left_out = json.loads(metadata["digests"]), json.loads(metadata["left_out"])
        return UndoFacts(dict(digests), files, tuple(left_out))
    # binascii.Error is a ValueError.
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--undo {path}: is not an undo file of `export --format merged` ({error!r}); give the "
            "file that --undo named there"
        ) from error


def check_belongs(path: Path, facts: UndoFacts, checkpoint: Checkpoint, record: Checkpoint) -> None:
    """Check that an undo file belongs to a merged checkpoint.

    Raises:
        CheckpointError: a tensor is missing, or is not the one that the merge made.
    """
    faults = [f"{key} is not in {path}" for key in facts.digests if key not in record]
    faults += [fault for key in record for fault in _faults(path, key, facts, checkpoint, record)]
    if faults:
        raise CheckpointError(checkpoint.directory, faults)


def _faults(
    path: Path, key: str, facts: UndoFacts, checkpoint: Checkpoint, record: Checkpoint
) -> list[str]:
    if key not in checkpoint:
        return [f"{key} is missing, and {path} holds its original"]
    kinds = [(c.dtype(key), list(c.shape(key))) for c in (checkpoint, record)]
    if kinds[0] != kinds[1]:
        return [f"{key} is {kinds[0]}, its original in {path} {kinds[1]}"]
    if faults := record.dtype_faults(key):
        return faults
    if digest(checkpoint.read(key)) != facts.digests.get(key):
        return [f"{key} is not the tensor of the merge that {path} belongs to"]
    return []
