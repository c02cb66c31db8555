"""The commands export and unmerge."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

import porting
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.features.statistics_file import FILE, read_statistics
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.clients import facts
from jax_unlearn.runs.hub import check_repository, push
from jax_unlearn.runs.model_card import CARD, adapter_card, is_of_clip, merged_card
from jax_unlearn.runs.run_directory import Metrics, check_run
from jax_unlearn.runs.settings.checks import refuse_unused
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.settings.inputs import check_out
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import cached_checkpoint, local_checkpoint, pinned
from jax_unlearn.runtime.outputs import check_output
from jax_unlearn.runtime.used_if import used_if
from porting.peft import base_of, name_base, read_facts, remove_bias
from porting.weight_digests import digest_of_base

Format = Literal["merged", "peft"]


@dataclass(frozen=True)
class Export:
    """Write what a run made for PyTorch."""

    run: Positional[Path]
    """Directory of a run."""
    out: Path
    """Directory to create."""
    format: Format = "merged"
    """merged: a whole checkpoint with the change merged in, which is the form to serve; it holds
    nothing of the weights that it replaces. peft: an adapter for PyTorch with PEFT."""
    undo: Path | None = used_if(None, format="merged")
    """File to write the original weights to, for `unmerge`; without it they are not kept."""
    checkpoint: Path | None = used_if(None, format="merged")
    """Where the run's checkpoint is now, if it was moved."""
    base_model: str | None = used_if(None, format="peft")
    """Name of the checkpoint in the adapter, where PEFT looks for it; by default that of the run's
    adapter."""
    bias: bool = used_if(True, format="peft")
    """Keep the adapter's bias (PEFT's lora_bias; LEACE has one), which some servers refuse. Without
    it the adapter does something else than the run measured; what, is printed."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face Hub to upload --out to; a new one is private."""
    overwrite: bool = False
    """Replace --out and --undo if they exist."""


@dataclass(frozen=True)
class Unmerge:
    """Write the original of a merged checkpoint, byte for byte, from its undo file."""

    merged: Positional[Path]
    """Directory of the merged checkpoint."""
    undo: Path
    """File that `export --undo` wrote."""
    out: Path
    """Directory to create."""
    overwrite: bool = False
    """Replace --out if it exists."""


def export(command: Export) -> list[str]:
    """Merge a run's adapter into a copy of its checkpoint, or write it as a PEFT directory.

    Returns:
        Lines that say where the form works and where it has no effect.

    Raises:
        UserError: `run` is not a run, `out` exists or contains the run, or an option has no effect.
    """
    refuse_unused(command, {"format": command.format}, Export(command.run, command.out))
    run, out = command.run, command.out
    config = read_config(run)
    if command.checkpoint is not None:
        config = config.replace(checkpoint=pinned(command.checkpoint))
    check_out(out, config.samples, run)
    adapter = check_run(run, config)
    metrics: Metrics = read_sealed(run / "metrics.json")
    if not command.bias and all(pair.bias is None for pair in adapter.pairs.values()):
        raise UserError("--no-bias: has no effect here: the adapter has no bias; leave it out")
    if command.push_to_hub:
        check_repository(command.push_to_hub)
    lines = facts(command.format, is_of_clip(metrics))
    if command.format == "merged":
        merge(command, config, adapter, metrics)
    else:
        if not command.bias:
            lines = [*dropped(run, config, adapter, metrics), *lines]
        write_peft(command, config, metrics)
    if command.push_to_hub:
        lines.append(f"uploaded to {push(out, command.push_to_hub)}")
    return lines


def merge(command: Export, config: RunConfig, adapter: LoraAdapter, metrics: Metrics) -> None:
    """Write the merged checkpoint with its card."""
    checkpoint = local_checkpoint(config.samples.checkpoint, "all")
    adapter_dir = command.run / "adapter"
    check_base(adapter_dir, checkpoint)
    card = merged_card(config, metrics, base_of(adapter_dir), checkpoint)
    porting.merge_checkpoint(
        adapter,
        checkpoint,
        command.out,
        overwrite=command.overwrite,
        undo=command.undo,
        files={CARD: card},
    )


def write_peft(command: Export, config: RunConfig, metrics: Metrics) -> None:
    """Write the adapter directory with its card."""
    with fresh_directory(command.out, command.overwrite) as fresh:
        shutil.copytree(command.run / "adapter", fresh, dirs_exist_ok=True)
        name_base(fresh, command.base_model)
        if not command.bias:
            remove_bias(fresh)
            metrics = metrics | {"adapter": metrics["adapter"] | {"bias": False}}
        checkpoint = cached_checkpoint(config.samples.checkpoint)
        card = adapter_card(config, metrics, base_of(fresh), checkpoint)
        if not command.bias:
            card += "\nThe bias of this adapter was dropped; the figures above are with it.\n"
        (fresh / CARD).write_text(card, encoding="utf-8")


def dropped(run: Path, config: RunConfig, adapter: LoraAdapter, metrics: Metrics) -> list[str]:
    """What `--no-bias` leaves out, and from a run's statistics what that does."""
    pairs = {name: replace(pair, bias=None) for name, pair in adapter.pairs.items()}
    lines = []
    for name, pair in adapter.pairs.items():
        size = np.linalg.norm(adapter.scale * np.asarray(pair.bias))
        lines.append(f"dropped from {name}: a bias of norm {size:.3g}")
    if not (run / FILE).is_file():
        return lines
    extracted = read_statistics(run).extracted()
    without = LoraAdapter(pairs, alpha=adapter.alpha, rank=adapter.rank)
    measured = judge_of(extracted, config.samples).evaluate(without)
    for path, found in measured.get("paths", {}).items():
        moved = found["drift"]["relative"], metrics["paths"][path]["drift"]["relative"]
        lines.append(
            f"{path}: images to keep move by {moved[0]:.1%} of their embeddings without the bias, "
            f"by {moved[1]:.1%} with it"
        )
    return lines


def check_base(adapter_dir: Path, checkpoint: Path) -> None:
    """Check that a checkpoint has the weights that an adapter was fitted on, if it says which.

    Raises:
        UserError: it has others.
    """
    fitted_on = read_facts(adapter_dir).get("base_sha256")
    found = digest_of_base(porting.load_peft(adapter_dir), checkpoint)
    if fitted_on and found and fitted_on != found:
        raise UserError(
            f"{checkpoint}: has other weights in the adapted Linears than the adapter in "
            f"{adapter_dir} was fitted on; give --checkpoint of the run's own"
        )


def unmerge(command: Unmerge) -> None:
    """Undo `export --format merged`; see `porting.unmerge_checkpoint`."""
    inputs = {"the merged checkpoint": [command.merged], "the undo file": [command.undo]}
    check_output(command.out, inputs)
    porting.unmerge_checkpoint(command.merged, command.undo, command.out, command.overwrite)
