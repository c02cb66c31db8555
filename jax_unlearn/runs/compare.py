"""The command compare: whether an edit is in what is served, and how large it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table
from tyro.conf import Positional

import porting
from jax_unlearn.data.scan import printable
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.export import check_base
from jax_unlearn.runs.vision_outputs import (
    ClipVision,
    Outputs,
    QwenVision,
    change,
    open_vision,
    read_images,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from porting.adaptable_linears import locate_in, open_weights
from porting.checkpoint import Checkpoint
from porting.dense import dense_adapter, merged_by_linear, merged_change
from porting.differences import Differences, differences
from porting.gguf_projectors import GgufProjectors
from porting.merge import merged_tensors

# A smaller relative change of the outputs is rounding in float32.
LEAST = 1e-5
# Share of the run's edit by which a result may miss it: more than half precision loses.
TOLERANCE = 0.1
SHOWN = 6


@dataclass(frozen=True)
class Compare:
    """Whether an edit is in a result, and how large: exits with 0 if so, with 1 if not."""

    base: Positional[Path]
    """Directory of the original checkpoint."""
    result: Positional[Path]
    """What is served: a directory of a checkpoint or of a PEFT adapter, or the .gguf file that
    llama.cpp's conversion wrote with --mmproj."""
    images: Positional[tuple[Path, ...]]
    """Images that both are shown."""
    run: Path | None = None
    """Directory of the run whose edit RESULT should have."""


@dataclass
class Verdict:
    """present: the edit is there, with `run` that run's. lines: what was found. table: changes."""

    present: bool
    table: Table
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """Outputs of the base, of the result, and of the base with the run's adapter."""

    base: Outputs
    result: Outputs
    wanted: Outputs | None


def compare(command: Compare) -> Verdict:
    """Compare what the vision sides of a base and of a result make of images.

    Raises:
        UserError: a file cannot be read, or BASE is not the base of the run.
    """
    images = read_images(command.images)
    adapter = None
    if command.run is not None:
        adapter = porting.load_peft(command.run / "adapter")
        check_base(command.run / "adapter", local_checkpoint(command.base, "all"))
    result = local_checkpoint(command.result, "all")
    base = open_vision(local_checkpoint(command.base, "all"))
    lines: list[str] = []
    if result.suffix == ".gguf":
        seen = of_gguf(base, result, images, adapter)
        lines.append("compared: the Mergers' tensors of the file; its other tensors are not")
        others: list[str] = []
    elif (result / "adapter_config.json").is_file() and not (result / "config.json").is_file():
        seen = of_adapter(base, result, images, adapter)
        lines.append("compared: BASE with the adapter applied, as PEFT applies it in PyTorch")
        others = []
    else:
        seen = of_checkpoint(base, result, images, adapter)
        others = compare_tensors(base, result, adapter, lines)
    return verdict(seen, lines, others)


def of_checkpoint(
    base: QwenVision | ClipVision,
    result: Path,
    images: Sequence[Image.Image],
    adapter: LoraAdapter | None,
) -> Seen:
    before = base.outputs(images)
    # Rounded as a merge is: of a small edit the data type of the files loses a good part.
    edit = merged_change(adapter, base.checkpoint) if adapter else None
    wanted = base.outputs(images, edit) if edit else None
    # With one image processor, so that only the weights can differ.
    after = open_vision(result).outputs(images, processor=base.checkpoint)
    if {n: x.shape for n, x in before.items()} != {n: x.shape for n, x in after.items()}:
        raise UserError(f"{result}: its outputs have other shapes than those of {base.checkpoint}")
    return Seen(before, after, wanted)


def of_adapter(
    base: QwenVision | ClipVision,
    result: Path,
    images: Sequence[Image.Image],
    adapter: LoraAdapter | None,
) -> Seen:
    applied = porting.load_peft(result)
    if unknown := sorted(set(applied.pairs) - set(base.linears)):
        raise UserError(f"{result}: adapts {unknown[0]}, which {base.checkpoint} does not have")
    check_base(result, base.checkpoint)
    wanted = base.outputs(images, adapter) if adapter else None
    return Seen(base.outputs(images), base.outputs(images, applied), wanted)


def of_gguf(
    base: QwenVision | ClipVision,
    result: Path,
    images: Sequence[Image.Image],
    adapter: LoraAdapter | None,
) -> Seen:
    """The base is rounded as the file is, so that its loss is not taken for an edit."""
    if not isinstance(base, QwenVision):
        raise UserError(f"{result}: a GGUF file is compared with a Qwen tower, not with CLIP")
    found, tower = GgufProjectors(result, base.tower.config), base.tower
    merged = merged_by_linear(adapter, base.checkpoint) if adapter else {}

    def original(name: str) -> np.ndarray:
        linear, _, part = name.rpartition(".")
        weight, bias = tower.linear(linear)
        return weight if part == "weight" else bias

    def rounded(name: str) -> np.ndarray:
        return found.rounded(name, original(name)) - original(name)

    def read(name: str) -> np.ndarray:
        return found.read(name) - original(name)

    def expected(name: str) -> np.ndarray:
        tensor = merged[name][1] if name in merged else original(name)
        return found.rounded(name, tensor) - original(name)

    before, after, wanted = (
        base.outputs(images, dense_adapter(one, base.linears)) for one in (rounded, read, expected)
    )
    return Seen(before, after, wanted if adapter else None)


def compare_tensors(
    base: QwenVision | ClipVision, result: Path, adapter: LoraAdapter | None, lines: list[str]
) -> list[str]:
    """Add to `lines` which tensors of a checkpoint differ; returns what contradicts the run."""
    with open_weights(base.checkpoint) as ours, open_weights(result) as theirs:
        found, place = differences(ours, theirs), locate_in(ours)
        linears = {place.key(name, part) for name in base.linears for part in ("weight", "bias")}
        lines += listed(found, linears)
        if adapter is None:
            return []
        changed = set(place.keys(adapter).values())
        outside = [key for key in found.changed if key not in changed]
        others = [f"{named(outside)}: not BASE's, and not changed by the run"] if outside else []
        others += [f"{named(found.missing)}: missing"] if found.missing else []
        return [*others, *unlike_run(adapter, ours, theirs)]


def listed(found: Differences, linears: set[str]) -> list[str]:
    """A line for each kind of difference."""
    inside = [key for key in found.changed if key in linears]
    outside = [key for key in found.changed if key not in linears]
    kinds = {
        "changed in Linears that an adapter may change": inside,
        "changed OUTSIDE of them": outside,
        "missing in RESULT": found.missing,
        "only in RESULT": found.extra,
        "of a data type that cannot be compared": found.unread,
    }
    lines = [f"tensors {kind}: {named(keys)}" for kind, keys in kinds.items() if keys]
    if found.cast:
        lines.append(f"tensors in another data type than BASE's: {found.cast}")
    return lines or ["tensors: all are equal"]


def named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN])}{more}"


def unlike_run(adapter: LoraAdapter, base: Checkpoint, result: Checkpoint) -> list[str]:
    """Tensors that the run changes and that are not as it changes them."""
    lines = []
    for key, original, merged in merged_tensors(adapter, base):
        if key not in result or result.dtype_faults(key) or result.shape(key) != original.shape:
            continue
        tensor = result.read(key)
        first, last, here = (x.astype(np.float64) for x in (original, merged, tensor))
        size = float(np.linalg.norm(last - first))
        if np.array_equal(here, first.astype(tensor.dtype)) and size > 0:
            lines.append(f"{key}: is BASE's; the run's edit was put back, or never made")
        elif (miss := float(np.linalg.norm(here - last))) > TOLERANCE * size:
            lines.append(f"{key}: misses the run's by {miss / max(size, 1e-30):.2g} of its edit")
    return lines


def verdict(seen: Seen, lines: list[str], others: list[str]) -> Verdict:
    """The changes as a table, and whether the edit is there."""
    table = Table("projector", "relative change", "mean cosine")
    if seen.wanted:
        table.add_column("misses the run's edit by")
    present, missed = False, [*others]
    for name, before in seen.base.items():
        moved = change(before, seen.result[name])
        present |= moved.relative > LEAST
        row = [name, f"{moved.relative:.3g}", f"{moved.cosine:.4f}"]
        if seen.wanted:
            size = float(np.linalg.norm(seen.wanted[name] - before))
            miss = float(np.linalg.norm(seen.result[name] - seen.wanted[name]))
            scale = max(size, LEAST * float(np.linalg.norm(before)))
            row.append(f"{miss / scale:.1%} of it")
            if miss > TOLERANCE * scale:
                missed.append(f"{name}: misses the run's edit by {miss / scale:.1%} of it")
        table.add_row(*map(printable, row))
    lines += missed
    if not present:
        lines.append("NO EDIT: the outputs are those of BASE")
    elif missed:
        lines.append("NOT THE RUN'S EDIT: the outputs or tensors are others than the run makes")
    else:
        largest = max(change(x, seen.result[name]).relative for name, x in seen.base.items())
        lines.append(f"the edit is there: outputs move by up to {largest:.1%}")
    return Verdict(present and not missed, table, lines)
