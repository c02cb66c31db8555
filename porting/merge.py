"""Merge an adapter into a copy of its checkpoint, and undo it.

The changed tensors keep their dtype and shape, so their bytes are replaced in place in the copied
shard; headers, index, configs and all other tensors stay identical byte for byte. The copy holds
nothing of the original tensors: they are written to a file elsewhere, or not at all.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jax_unlearn.models.lora import LoraAdapter, LoraPair, checked_adapter
from jax_unlearn.runtime.arguments import path_argument
from jax_unlearn.runtime.atomic_files import fresh_directory, fresh_file
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.outputs import MERGE_RECORD, check_free
from jax_unlearn.runtime.text_files import read_json
from jax_unlearn.runtime.version import VERSION
from porting.adaptable_linears import AdaptableLinears, adapter_faults, locate_in, open_weights
from porting.checkpoint import Checkpoint, CheckpointError, missing_files
from porting.copied_checkpoint import EARLIER_UNDO, copy_tree, patch
from porting.safetensors_bytes import Tensor, digest
from porting.undo import (
    UndoFacts,
    check_belongs,
    check_undo_place,
    read_undo,
    undo_bytes,
)


def merge_checkpoint(
    adapter: LoraAdapter,
    checkpoint_dir: str | Path,
    out_dir: str | Path,
    overwrite: bool = False,
    *,
    undo: str | Path | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Copy a checkpoint with W + alpha / rank · b @ a in place of each adapted W [E, D_in].

    If a pair has a bias, alpha / rank times it is added to the Linear's bias. Sums are computed in
    float64 and cast to the dtype of the file. The copy holds nothing of the original tensors;
    weights in other files than those that are read are left out, with a warning that names them.
    `jax_unlearn.json` in the copy says what was merged. The result can be merged into again.

    Args:
        adapter: the adapter.
        checkpoint_dir: the checkpoint, or its id on the hub.
        out_dir: directory of the copy.
        overwrite: replace an existing `out_dir`, and an existing `undo`.
        undo: file to write the original tensors to, for `unmerge_checkpoint`; by default they are
            not kept.
        files: text of files to write in the copy, such as README.md, by name.

    Raises:
        UserError: the checkpoint is of an unsupported family, `out_dir` or `undo` exists, `out_dir`
            overlaps with the checkpoint, or `undo` lies in one of them.
        CheckpointError: a Linear or its bias is missing or has another shape; names all of them.
    """
    adapter = checked_adapter("adapter", adapter)
    source = local_checkpoint(path_argument("checkpoint_dir", checkpoint_dir), "all")
    out = path_argument("out_dir", out_dir)
    _check_no_overlap(source, out)
    check_free(out, overwrite)
    if undo is not None:
        check_undo_place(path_argument("undo", undo), source, out)
    with open_weights(source) as checkpoint:
        changes = merged_tensors(adapter, checkpoint)
        record = nullcontext() if undo is None else fresh_file(undo, overwrite)
        with record as undo_file, fresh_directory(out, overwrite) as fresh:
            left_out = copy_tree(source, fresh, {p.name for p in checkpoint.shard_of.values()})
            originals, digests, same = {}, {}, []
            for key, original, merged in changes:
                patch(fresh / checkpoint.shard_of[key].name, key, merged)
                digests[key] = digest(merged)
                same += [key] if digest(original) == digests[key] else []
                if undo_file is not None:
                    originals[key] = original
            written = dict(files or {}) | {MERGE_RECORD: _record(source, adapter, digests)}
            before = _write(fresh, written)
            if undo_file is not None:
                facts = UndoFacts(digests, before, tuple(left_out))
                undo_file.write_bytes(undo_bytes(adapter, originals, facts, VERSION))
    _warn_of_no_change(source, same)
    _warn_of_left_out(source, left_out)


def merged_tensors(
    adapter: LoraAdapter, checkpoint: Checkpoint
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(key, original, merged) of each tensor that an adapter changes.

    The adapter is checked at the call, before the first tensor is read.

    Raises:
        CheckpointError: the adapter does not fit, or a merged tensor would not be finite.
    """
    place = locate_in(checkpoint)
    keys = _changed_keys(adapter, place, checkpoint)

    def tensors() -> Iterator[tuple[str, Tensor, Tensor]]:
        for linear, key in keys.items():
            original, change = checkpoint.read(key), _change(adapter, place, *linear)
            yield key, original, _merged(key, original, change, checkpoint.directory)

    return tensors()


def unmerge_checkpoint(
    merged_dir: str | Path, undo: str | Path, out_dir: str | Path, overwrite: bool = False
) -> None:
    """Undo `merge_checkpoint`: write the original checkpoint, byte for byte.

    Files that the merge had left out are not restored; a warning names them.

    Args:
        merged_dir: the merged checkpoint.
        undo: the file that the merge wrote the original tensors to.
        out_dir: directory of the original checkpoint.
        overwrite: replace an existing `out_dir`.

    Raises:
        UserError: `undo` is not an undo file, or `out_dir` exists or overlaps with `merged_dir`.
        CheckpointError: `undo` does not belong to the checkpoint.
    """
    source, path = path_argument("merged_dir", merged_dir), path_argument("undo", undo)
    _check_no_overlap(source, path_argument("out_dir", out_dir))
    facts = read_undo(path)
    with open_weights(source) as checkpoint, Checkpoint(path.parent, path.name) as record:
        check_belongs(path, facts, checkpoint, record)
        with fresh_directory(out_dir, overwrite) as fresh:
            copy_tree(source, fresh, {p.name for p in checkpoint.shard_of.values()})
            for key in record:
                patch(fresh / checkpoint.shard_of[key].name, key, record.read(key))
            for name, content in facts.files.items():
                (fresh / name).unlink(missing_ok=True)
                if content is not None:
                    (fresh / name).write_bytes(content)
    _warn_of_left_out(source, facts.left_out)


def _check_no_overlap(source: Path, out_dir: Path) -> None:
    here, there = source.resolve(), out_dir.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"{out_dir}: overlaps with {source}; choose a folder outside it")


def _changed_keys(
    adapter: LoraAdapter, place: AdaptableLinears[Any], checkpoint: Checkpoint
) -> dict[tuple[str, str], str]:
    """Key of each tensor that changes, by the name of its Linear and `weight` or `bias`."""
    keys = place.keys(adapter)
    faults = missing_files(checkpoint.missing.values())
    faults += adapter_faults(adapter, place, checkpoint)
    for (name, tensor), key in keys.items():
        if key in checkpoint:
            faults += checkpoint.dtype_faults(key)
        if tensor == "bias" and keys[name, "weight"] in checkpoint:
            faults += _bias_faults(key, adapter.pairs[name], checkpoint)
    if faults:
        raise CheckpointError(checkpoint.directory, faults)
    return keys


def _bias_faults(key: str, pair: LoraPair, checkpoint: Checkpoint) -> list[str]:
    if key not in checkpoint:
        cure = "a Linear without one cannot be merged, use the PEFT adapter"
        return [f"{key} is missing, and the adapter changes the bias: {cure}"]
    shape, adapted = checkpoint.shape(key), pair.b.shape[:1]
    if shape == adapted:
        return []
    return [f"{key} has shape {list(shape)}, the adapter's bias {list(adapted)}"]


def _change(
    adapter: LoraAdapter, place: AdaptableLinears[Any], name: str, tensor: str
) -> Float64[np.ndarray, "..."]:
    """The change of the weight or the bias, in the layout of the file."""
    pair = adapter.pairs[name]
    if tensor == "bias":
        return adapter.scale * np.asarray(pair.bias, np.float64)
    change = adapter.scale * (np.asarray(pair.b, np.float64) @ np.asarray(pair.a, np.float64))
    return change.T if place.is_transposed else change


def _merged(key: str, original: Tensor, delta: Float64[np.ndarray, "..."], source: Path) -> Tensor:
    with np.errstate(over="ignore"):
        merged = (original.astype(np.float64) + delta).astype(original.dtype)
    if not np.isfinite(merged.astype(np.float32)).all():
        raise CheckpointError(source, [f"{key} would not be finite in {original.dtype}"])
    return merged


def _record(source: Path, adapter: LoraAdapter, digests: Mapping[str, str]) -> str:
    """The content of `jax_unlearn.json`: every merge so far, the latest last."""
    path, merges = source / MERGE_RECORD, []
    if path.is_file():
        try:
            merges = list(read_json(path)["merges"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error!r}); remove it") from error
    latest = {
        "version": VERSION,
        "alpha": float(adapter.alpha),
        "rank": adapter.rank,
        "linears": sorted(adapter.pairs),
        "sha256": dict(digests),
    }
    return json.dumps({"merges": [*merges, latest]}, indent=2, sort_keys=True) + "\n"


def _write(directory: Path, files: Mapping[str, str]) -> dict[str, bytes | None]:
    """Write files; returns what they had held."""
    before: dict[str, bytes | None] = {}
    for name, text in files.items():
        path = directory / name
        before[name] = path.read_bytes() if path.is_file() else None
        # A link may lead out of the checkpoint.
        path.unlink(missing_ok=True)
        path.write_bytes(text.encode())
    return before


def _warn_of_no_change(source: Path, same: list[str]) -> None:
    if same:
        warnings.warn(
            f"{source}: the change of {', '.join(same)} is smaller than its rounding, so that it "
            "stays as it was",
            stacklevel=3,
        )


def _warn_of_left_out(source: Path, left_out: list[str] | tuple[str, ...]) -> None:
    if any(Path(name).name == EARLIER_UNDO for name in left_out):
        warnings.warn(
            f"{source / EARLIER_UNDO}: holds the original weights of an earlier merge, and is not "
            "copied; delete it, or unmerge with the version that wrote it",
            stacklevel=3,
        )
    if others := [name for name in left_out if Path(name).name != EARLIER_UNDO]:
        warnings.warn(
            f"{source}: not copied, since they hold weights without the change: "
            f"{', '.join(others)}",
            stacklevel=3,
        )
