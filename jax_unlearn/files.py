"""Directories that appear whole or not at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_unlearn.errors import UserError

# What the user can mend; any other OSError is a fault of ours and keeps its traceback.
MENDABLE = {
    errno.EACCES,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


@contextmanager
def fresh_directory(out_dir: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling of `out_dir` that takes its name when the block ends.

    When the block raises, the sibling is removed and an existing `out_dir` is as it was. Parents
    are created. An existing empty directory counts as free.

    Args:
        out_dir: the directory to make.
        overwrite: replace a directory that exists.

    Yields:
        The sibling, empty.

    Raises:
        UserError: `out_dir` exists and `overwrite` is not set, is a file or a mount point, or the
            file system refuses (rights, space); names the path.
    """
    final = Path(out_dir).resolve()
    partial = _sibling(final, "partial")
    try:
        check_free(final, overwrite)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise _refusal(error, partial, final) from error
    try:
        yield partial
        _install(partial, final, overwrite)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        raise _refusal(error, partial, final) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out_dir: str | Path, overwrite: bool = False) -> None:
    """What `fresh_directory` asks of the place, for callers that want to know before they work.

    Raises:
        UserError: the place is taken, or may not be replaced.
    """
    out_dir = Path(out_dir).resolve()
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir}: a file of that name exists; choose another folder")
    if os.path.ismount(out_dir):
        raise UserError(f"{out_dir}: a mount point cannot be replaced; choose a folder inside it")
    if any(os.scandir(out_dir)) and not overwrite:
        raise UserError(f"{out_dir}: exists; choose another folder, or pass --overwrite")
    for kept in (Path.cwd(), Path.home()):
        if kept.resolve().is_relative_to(out_dir):
            raise UserError(f"{out_dir}: holds {kept}, which must stay; choose another folder")


def _sibling(path: Path, what: str) -> Path:
    # A sibling, so that the rename stays within one file system. Not tempfile.mkdtemp: its
    # directories are closed to everyone else, and this one becomes the result.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def _install(partial: Path, final: Path, overwrite: bool) -> None:
    if not (overwrite and final.exists()):
        # Replaces an empty directory, and fails if somebody filled it in the meantime.
        partial.rename(final)
        return
    old = _sibling(final, "old")
    final.rename(old)
    try:
        partial.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refusal(error: OSError, partial: Path, final: Path) -> UserError:
    """Names the path that failed, unless it is inside what the user never sees."""
    path = Path(error.filename or final)
    path = final if path.is_relative_to(partial) else path
    return UserError(f"{path}: {error.strerror}; mend that, or choose another folder")
