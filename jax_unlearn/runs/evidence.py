"""Digests of what a run was made from and of its files, for its certificate and to verify it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import porting
from jax_unlearn.data.dataset import collect
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.data.scan import LeftOut, printable
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.digests import of_file
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import cached_checkpoint
from jax_unlearn.runtime.outputs import CERTIFICATE, TEMPORARY
from porting.adaptable_linears import has_weights, open_weights
from porting.checkpoint import CheckpointError
from porting.merge import merged_tensors
from porting.safetensors_bytes import digest as of_tensor

Facts = dict[str, Any]


def run_files(run: Path) -> dict[str, str]:
    """SHA-256 of every file of a run but the certificate, by its path in the run's directory."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        # What a killed command left is not of the run, and is removed by the next one.
        if path.is_file() and name != CERTIFICATE and not TEMPORARY.fullmatch(path.name):
            found[name] = of_file(path)
    return found


def checkpoint_files(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but hidden ones, by its path in the directory."""
    directory = cached_checkpoint(checkpoint)
    found = {}
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            found[inside.as_posix()] = of_file(path)
    return found


def base_linears(checkpoint: Path, linears: Iterable[str]) -> dict[str, str] | None:
    """SHA-256 of the stored tensors of Linears; None if the checkpoint is not here.

    Raises:
        UserError: the checkpoint cannot be read, or has no such Linear.
    """
    directory = cached_checkpoint(checkpoint)
    if not has_weights(directory):
        return None
    try:
        return porting.linear_digests(directory, linears)
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}; restore the checkpoint") from error


def edited_tensors(run: Path, checkpoint: Path) -> Facts:
    """SHA-256 of each tensor of the checkpoint with the edit merged in, as `export` writes it.

    Where nothing can be merged, as into quantised weights, `refused` says why.
    """
    directory = cached_checkpoint(checkpoint)
    if not has_weights(directory):
        return {"refused": f"{checkpoint} is not here"}
    adapter = porting.load_peft(run / "adapter")
    try:
        with open_weights(directory) as weights:
            changed = merged_tensors(adapter, weights)
            return {key: of_tensor(merged) for key, _, merged in changed}
    except CheckpointError as error:
        return {"refused": str(error)}


def sample_facts(config: RunConfig) -> Facts:
    """The samples of a run: groups with their classes, and the SHA-256 of each file.

    Raises:
        UserError: the samples are not here.
    """
    if config.samples.statistics is not None:
        return {"files": {}, "note": "fitted on saved statistics; their source has the images"}
    dataset = collect(config.samples, config.solver.seed)
    shown = [
        file
        for folder in (config.samples.images, *config.samples.other_images)
        if folder is not None
        for file in find_images(folder, folder.name, LeftOut())
    ]
    files = [one for one in (*dataset.samples(), *shown) if isinstance(one, ImageFile)]
    return {
        "fingerprint": dataset.fingerprint(),
        "groups": {name: describe(group) for name, group in dataset.groups().items()},
        "files": digests_of({file.path for file in files}),
    }


def describe(group: Iterable[Any]) -> Facts:
    """Number of samples by class, and the digest of their list; the prompts themselves."""
    samples = list(group)
    total = hashlib.sha256()
    classes: dict[str, int] = {}
    for one in samples:
        classes[one.label] = classes.get(one.label, 0) + 1
        total.update(f"{one.label} {one.digest.hex()}\n".encode())
    facts: Facts = {"count": len(samples), "classes": classes, "sha256": total.hexdigest()}
    if prompts := [one.text for one in samples if isinstance(one, Prompt)]:
        facts["prompts"] = prompts
    return facts


def question_files(*paths: Path | None) -> dict[str, str]:
    """SHA-256 of files of questions; of a directory, which is a benchmark, all files in it."""
    files: set[Path] = set()
    for path in paths:
        if path is not None:
            files |= {one for one in path.rglob("*") if one.is_file()} if path.is_dir() else {path}
    return digests_of(files)


def digests_of(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their absolute paths.

    Raises:
        UserError: one cannot be read.
    """
    found = {}
    for path in sorted(paths):
        try:
            found[str(path.absolute())] = of_file(path)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"{printable(str(path))}: {why}; restore it, or run again") from error
    return found
