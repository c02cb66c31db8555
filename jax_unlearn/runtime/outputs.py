"""Which places may be written: no input, and nothing that jax-unlearn has not written itself."""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jax_unlearn.runtime.errors import UserError

# What was merged into a checkpoint, whose other files may have any name; the second is of merged
# checkpoints of earlier versions.
MERGE_RECORD = "jax_unlearn.json"
MERGED = (MERGE_RECORD, "jax_unlearn_undo/originals.safetensors")
ADAPTER = "adapter"
# The files of an adapter that do not change; its card is written again by `evaluate`.
ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
CARD = "README.md"
# A directory in that of a run, whose files belong to another program.
TENSORBOARD = "tensorboard"
# What the model answered, and what to the questions of a published benchmark.
ANSWERS, BENCHMARK_ANSWERS = "answers.jsonl", "benchmark-answers.jsonl"
CERTIFICATE = "certificate.json"
RUN_FILES = frozenset(
    {
        "attacks.json",
        ANSWERS,
        BENCHMARK_ANSWERS,
        CERTIFICATE,
        "config.json",
        "digests.json",
        "history.jsonl",
        "metrics.json",
        "report.html",
        "statistics.safetensors",
        "sweep.csv",
        "sweep.json",
        "sweep.png",
    }
)
# One of them is in every directory of a run or a sweep, and of an exported adapter.
MARKS = ("metrics.json", "sweep.json", "adapter_config.json")
# Names of files and directories that are not complete, or that are being removed.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{8})\.(?P<what>partial|old)", re.DOTALL)


def check_output(out: Path, inputs: Mapping[str, Iterable[Path]], name: str = "--out") -> None:
    """Check that an output is apart from all inputs of a command, with links resolved.

    Args:
        out: the directory to create.
        inputs: files and directories that the command or a later one reads, by what to call them.
        name: the option or argument that names `out`.

    Raises:
        UserError: `out` is an input, holds one or lies in one; names both.
    """
    there = resolved(out)
    for what, paths in inputs.items():
        for path in paths:
            here = Path(os.path.realpath(path))
            if there == here:
                how = "is"
            elif here.is_relative_to(there):
                how = "holds"
            elif there.is_relative_to(here):
                how = "lies in"
            else:
                continue
            raise UserError(
                f"{name} {out}: {how} {what} {path}, which is read; choose a folder outside it"
            )


def resolved(out: str | Path) -> Path:
    """The absolute path of an output, which need not exist, with links resolved.

    Raises:
        UserError: links lead in a circle, or the path cannot be looked up for another reason.
    """
    try:
        os.stat(out)
    except OSError as error:
        if error.errno != errno.ENOENT:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"{out}: {reason}; choose another folder") from error
    return Path(os.path.realpath(out))


def check_free(
    out_dir: str | Path,
    overwrite: bool = False,
    cure: str = "choose another folder, or pass --overwrite",
) -> None:
    """Check that `fresh_directory` may create `out_dir`, before any work is done.

    Args:
        out_dir: the directory.
        overwrite: whether it may be replaced.
        cure: what to do if it exists.

    Raises:
        UserError: `out_dir` exists, or may not be replaced.
    """
    out_dir = resolved(out_dir)
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir}: a file of that name exists; choose another folder")
    if os.path.ismount(out_dir):
        raise UserError(f"{out_dir}: a mount point cannot be replaced; choose a folder inside it")
    # Without a home, the path stays as it is, and is no directory of anybody.
    for kept in (Path.cwd(), Path(os.path.expanduser("~"))):
        if kept.resolve().is_relative_to(out_dir):
            raise UserError(f"{out_dir}: holds {kept}, which must stay; choose another folder")
    with os.scandir(out_dir) as entries:
        empty = not any(entries)
    if empty:
        return
    if not overwrite:
        raise UserError(f"{out_dir}: exists; {cure}")
    check_ours(out_dir)


def check_ours(directory: Path) -> None:
    """Check that jax-unlearn wrote a directory and every file in it, so that it may be removed.

    Raises:
        UserError: it did not; names the directory, or the file that is not ours.
    """
    if any((directory / mark).is_file() for mark in MERGED):
        return
    if not any((directory / mark).is_file() for mark in MARKS):
        raise UserError(f"{directory}: not made by jax-unlearn, so not replaced; choose another")
    if stranger := _stranger(directory):
        raise UserError(
            f"{stranger}: not made by jax-unlearn, so {directory} is not replaced; move it away, "
            "or choose another folder"
        )


def _stranger(directory: Path) -> Path | None:
    """A file that is in no directory of a run or an adapter; None if there is none."""
    of_adapter = (directory / "adapter_config.json").is_file()
    known = ADAPTER_FILES | {CARD} if of_adapter else RUN_FILES
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink():
            return entry
        if entry.is_dir():
            if entry.name == TENSORBOARD and not of_adapter:
                continue
            inside = _stranger(entry) if entry.name == ADAPTER and not of_adapter else entry
            if inside:
                return inside
        elif entry.name not in known:
            temporary = TEMPORARY.fullmatch(entry.name)
            if not (temporary and temporary["name"] in known):
                return entry
    return None
