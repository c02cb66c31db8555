"""Merge an adapter into a copy of its checkpoint, and undo it.

Merged checkpoints are for servers that apply LoRA to the language model only. The changed tensors
keep their dtype and shape, so their bytes are replaced in place in the copied shard; headers,
index, configs and all other tensors stay identical byte for byte.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped
from safetensors.numpy import save

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from porting.adaptable_linears import adapter_faults, locate, read_adaptable_family
from porting.checkpoint import Checkpoint, CheckpointError, byte_ranges

# A folder of its own, because servers load every *.safetensors next to config.json as weights.
UNDO = "jax_unlearn_undo"
ORIGINALS = "originals.safetensors"

Tensor = Shaped[np.ndarray, "..."]


def merge_checkpoint(
    adapter: LoraAdapter,
    checkpoint_dir: str | Path,
    out_dir: str | Path,
    overwrite: bool = False,
) -> None:
    """Copy a checkpoint with W + alpha / rank · b @ a in place of each adapted W [E, D_in].

    If a pair has a bias, alpha / rank times it is added to the Linear's bias. Sums are computed in
    float64 and cast to the dtype of the file. The original tensors are kept in `jax_unlearn_undo/`
    in the copy, for `unmerge_checkpoint`.

    Args:
        adapter: the adapter.
        checkpoint_dir: the checkpoint.
        out_dir: directory of the copy.
        overwrite: replace an existing `out_dir`.

    Raises:
        UserError: the checkpoint is already merged or of an unsupported family, or `out_dir` exists
            or overlaps with it.
        CheckpointError: a Linear or its bias is missing or has another shape; names all of them.
    """
    source = Path(checkpoint_dir)
    if (source / UNDO).exists():
        cure = "undo that first (unmerge_checkpoint), or merge from the original"
        raise UserError(f"{source}: is a merged checkpoint; {cure}")
    _check_no_overlap(source, Path(out_dir))
    with Checkpoint(source) as checkpoint:
        keys = _changed_keys(adapter, checkpoint)
        with fresh_directory(out_dir, overwrite) as fresh:
            copy_tree(source, fresh)
            originals = {key: checkpoint.read(key) for key in keys.values()}
            for (name, tensor), key in keys.items():
                delta = adapter.scale * _change(adapter.pairs[name], tensor)
                merged = _merged(key, originals[key], delta, source)
                patch(fresh / checkpoint.shard_of[key].name, key, merged)
            (fresh / UNDO).mkdir()
            metadata = {"alpha": repr(adapter.alpha), "rank": str(adapter.rank)}
            (fresh / UNDO / ORIGINALS).write_bytes(save(originals, metadata=metadata))


def unmerge_checkpoint(
    merged_dir: str | Path, out_dir: str | Path, overwrite: bool = False
) -> None:
    """Undo `merge_checkpoint`: write the original checkpoint, byte for byte.

    Args:
        merged_dir: the merged checkpoint.
        out_dir: directory of the original checkpoint.
        overwrite: replace an existing `out_dir`.

    Raises:
        UserError: `merged_dir` is not a merged checkpoint, or `out_dir` exists or overlaps with it.
        CheckpointError: the saved tensors do not belong to the checkpoint.
    """
    source = Path(merged_dir)
    if source.is_dir() and not (source / UNDO).is_dir():
        raise UserError(f"{source / UNDO}: no such directory; {source} is not a merged checkpoint")
    _check_no_overlap(source, Path(out_dir))
    with Checkpoint(source) as checkpoint, Checkpoint(source / UNDO) as record:
        if faults := [fault for key in record for fault in _undo_faults(key, checkpoint, record)]:
            raise CheckpointError(source, faults)
        with fresh_directory(out_dir, overwrite) as fresh:
            copy_tree(source, fresh)
            shutil.rmtree(fresh / UNDO)
            for key in record:
                patch(fresh / checkpoint.shard_of[key].name, key, record.read(key))


def _check_no_overlap(source: Path, out_dir: Path) -> None:
    here, there = source.resolve(), out_dir.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"{out_dir}: overlaps with {source}; choose a folder outside it")


def _changed_keys(adapter: LoraAdapter, checkpoint: Checkpoint) -> dict[tuple[str, str], str]:
    """Key of each tensor that changes, by the name of its Linear and `weight` or `bias`."""
    place = locate(checkpoint, read_adaptable_family(checkpoint.directory))
    keys = place.keys(adapter)
    faults = adapter_faults(adapter, place, checkpoint)
    for (name, tensor), key in keys.items():
        if key in checkpoint:
            faults += _link_faults(checkpoint, key) + checkpoint.dtype_faults(key)
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


def _undo_faults(key: str, checkpoint: Checkpoint, record: Checkpoint) -> list[str]:
    if key not in checkpoint:
        return [f"{key} is missing, and {UNDO} holds its original"]
    kinds = [(c.dtype(key), list(c.shape(key))) for c in (checkpoint, record)]
    fault = f"{key} is {kinds[0]}, its original in {UNDO} {kinds[1]}"
    faults = _link_faults(checkpoint, key) + record.dtype_faults(key)
    return faults + ([fault] if kinds[0] != kinds[1] else [])


def _link_faults(checkpoint: Checkpoint, key: str) -> list[str]:
    shard = checkpoint.shard_of[key]
    if not _leads_out(shard, checkpoint.directory):
        return []
    return [f"{shard.name} is a link out of the checkpoint; put the file itself there"]


def _change(pair: LoraPair, tensor: str) -> Float64[np.ndarray, "..."]:
    """The change of the weight or the bias, without the scale."""
    if tensor == "bias":
        return np.asarray(pair.bias, np.float64)
    return np.asarray(pair.b, np.float64) @ np.asarray(pair.a, np.float64)


def _merged(key: str, original: Tensor, delta: Float64[np.ndarray, "..."], source: Path) -> Tensor:
    with np.errstate(over="ignore"):
        merged = (original.astype(np.float64) + delta).astype(original.dtype)
    if not np.isfinite(merged.astype(np.float32)).all():
        raise CheckpointError(source, [f"{key} would not be finite in {original.dtype}"])
    return merged


def patch(shard: Path, key: str, tensor: Tensor) -> None:
    """Replace the bytes of one tensor in a safetensors file; dtype and shape must be the same."""
    data = np.ascontiguousarray(tensor).tobytes()
    start, end = byte_ranges(shard)[key]
    assert end - start == len(data), f"{key}: {end - start} bytes in {shard}, {len(data)} new"
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(data)


def copy_tree(source: Path, target: Path, root: Path | None = None) -> None:
    """Copy every file below `source`; symbolic links that lead out of it are kept as links.

    The files of a snapshot in a Hugging Face cache are links to its blobs; those are copied.
    """
    root = root or source
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_symlink() and _leads_out(entry, root):
            place.symlink_to(entry.resolve())
        elif entry.is_symlink() and not entry.is_file():
            place.symlink_to(os.path.relpath(entry.resolve(), entry.parent.resolve()))
        elif entry.is_dir():
            place.mkdir()
            copy_tree(entry, place, root)
        else:
            # copyfile, without permissions: the copy of a read-only file must be writable.
            shutil.copyfile(entry, place)


def _leads_out(path: Path, root: Path) -> bool:
    homes, target = [root.resolve()], path.resolve()
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parent.parent / "blobs")
    return not any(target.is_relative_to(home) for home in homes)
