"""Write directories and files atomically: they appear complete or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.file_errors import CURES, OF_WRITING, number_of, written_path
from jax_unlearn.runtime.leftovers import (
    new_directory,
    new_file,
    remove_leftover_files,
    remove_leftovers,
)
from jax_unlearn.runtime.outputs import check_free, resolved


@contextmanager
def fresh_directory(out_dir: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `out_dir` that is renamed to `out_dir` when the block ends.

    If the block raises, the sibling is removed and an existing `out_dir` is left unchanged. What a
    killed process left is removed first. Parents are created. An existing empty directory may be
    replaced without `overwrite`.

    Args:
        out_dir: the directory to create.
        overwrite: replace an existing directory.

    Yields:
        The sibling, empty.

    Raises:
        UserError: `out_dir` exists and `overwrite` is not set, is a file or a mount point, or the
            file system refuses (permissions, space); names the path.
    """
    final = resolved(out_dir)
    partial = _sibling(final, "partial")
    with ExitStack() as stack:
        try:
            remove_leftovers(final)
            check_free(final, overwrite)
            final.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(new_directory(partial))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{final}: {reason}; fix it, or choose another folder") from error
        try:
            yield partial
            _install(partial, final, overwrite)
        except Exception as error:
            # Any exception, since not every library that writes raises an OSError.
            if (refusal := _refusal(error, partial, final)) is None:
                raise
            raise refusal from error


@contextmanager
def fresh_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that is renamed to `path` when the block ends.

    The sibling exists and is empty. If the block raises, it is removed and an existing file is left
    unchanged. What a killed process left is removed first. Parents are created.

    Raises:
        UserError: `path` exists and `overwrite` is not set, is a directory, or the file system
            refuses; names the path.
    """
    final = resolved(path)
    partial = _sibling(final, "partial")
    if final.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if final.exists() and not overwrite:
        raise UserError(f"{path}: exists; choose another name, or pass --overwrite")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover_files(final.parent, {final.name})
        with new_file(partial):
            yield partial
            partial.replace(final)
    except Exception as error:
        if (refusal := _refusal(error, partial, final)) is None:
            raise
        raise refusal from error


def _sibling(path: Path, what: str) -> Path:
    # A sibling, so that the rename stays within one file system. Not tempfile.mkdtemp: it creates
    # directories that only their owner can read, and this one becomes the result.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def _install(partial: Path, final: Path, overwrite: bool) -> None:
    if not (overwrite and final.exists()):
        # Replaces an empty directory; fails if another process has filled it in the meantime.
        partial.rename(final)
        return
    old = partial.with_name(partial.name.removesuffix("partial") + "old")
    final.rename(old)
    try:
        partial.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refusal(error: Exception, partial: Path, final: Path) -> UserError | None:
    """A UserError that names the path that failed, or `final` for a path inside `partial`.

    None for an error that is not of the file system.
    """
    # The UserError of a directory inside `partial` names that.
    cause = error.__cause__ if isinstance(error, UserError) else error
    number = number_of(cause) if cause else None
    if number is None or (cause is not error and number not in OF_WRITING):
        return None
    path = (cause and written_path(cause)) or final
    path = final if path.is_relative_to(partial) else path
    cure = CURES.get(number, "fix it")
    return UserError(f"{path}: {os.strerror(number)}; {cure}, or choose another folder")


def replace_files(directory: Path, contents: Mapping[str, str]) -> None:
    """Replace text files of a directory; all are written before the first is renamed.

    What a killed process left of them is removed first.

    Args:
        contents: the new text by file name.

    Raises:
        UserError: the file system refuses; the old files are then unchanged.
    """
    partials = {directory / name: _sibling(directory / name, "partial") for name in contents}
    try:
        remove_leftover_files(directory, contents)
        with ExitStack() as stack:
            for partial, text in zip(partials.values(), contents.values(), strict=True):
                stack.enter_context(new_file(partial))
                partial.write_text(text, encoding="utf-8")
            for path, partial in partials.items():
                partial.replace(path)
    except OSError as error:
        if (number := number_of(error)) is None:
            raise
        cure = CURES.get(number, "fix it")
        raise UserError(f"{directory}: {os.strerror(number)}; {cure}, and try again") from error
