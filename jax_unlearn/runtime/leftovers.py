"""Directories that killed processes left half-written beside an output.

A process holds a lock on its unfinished directory, so that others know whether it is still alive.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jax_unlearn.runtime.outputs import TEMPORARY


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Create a directory and lock it; at the end it is removed, unless it has another name then.

    Raises:
        OSError: it cannot be created.
    """
    lock = None
    while not path.is_dir():
        # Again if another process took it for a leftover before it was locked.
        path.mkdir()
        lock = _lock(path, wait=True)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(final: Path) -> None:
    """Remove the unfinished directories of killed processes that were to become `final`.

    If such a process was killed while it replaced `final`, the old directory gets its name back.
    Where the file system has no locks, nothing is removed.
    """
    if not final.parent.is_dir():
        return
    partial, old = ({}, {})  # type: tuple[dict[str, Path], dict[str, Path]]
    for path in final.parent.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and match["name"] == final.name and path.is_dir() and not path.is_symlink():
            (partial if match["what"] == "partial" else old)[match["token"]] = path
    alive = set()
    for token, path in partial.items():
        if (lock := _lock(path, wait=False)) is None:
            alive.add(token)
        else:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    for token, path in old.items():
        if token not in alive and final.exists():
            shutil.rmtree(path, ignore_errors=True)
        elif token not in alive:
            path.rename(final)


def _lock(directory: Path, wait: bool) -> int | None:
    """Lock a directory; returns its descriptor, or None if it is locked or cannot be."""
    with suppress(FileNotFoundError):
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            # Held by another process; or a file system without locks of directories, such as NFS.
            os.close(file)
            return None
        return file
    return None
