"""The commands export and unmerge."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import porting
from jax_unlearn.runs.settings.checks import refuse_unused
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if
from porting.adaptable_linears import digest_of_base
from porting.peft import name_base, read_facts

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


def export(command: Export) -> None:
    """Merge a run's adapter into a copy of its checkpoint, or write it as a PEFT directory.

    Raises:
        UserError: `run` is not a run, `out` exists or contains the run, or an option has no effect.
    """
    refuse_unused(command, {"format": command.format}, Export(command.run, command.out))
    run, out = command.run, command.out
    config, adapter = read_config(run), porting.load_peft(run / "adapter")
    if run.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: contains the run itself; choose another folder")
    if command.format == "merged":
        checkpoint = command.checkpoint or config.samples.checkpoint
        check_base(run / "adapter", checkpoint)
        porting.merge_checkpoint(
            adapter, checkpoint, out, overwrite=command.overwrite, undo=command.undo
        )
        return
    with fresh_directory(out, command.overwrite) as fresh:
        shutil.copytree(run / "adapter", fresh, dirs_exist_ok=True)
        name_base(fresh, command.base_model)


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
    porting.unmerge_checkpoint(command.merged, command.undo, command.out, command.overwrite)
