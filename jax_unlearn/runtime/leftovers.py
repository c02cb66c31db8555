"""Directories and files that killed processes left half-written beside an output.

A process holds a lock on what is unfinished, so that others know whether it is still alive.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
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


@contextmanager
def new_file(path: Path) -> Iterator[None]:
    """Create a file and lock it; at the end it is removed, unless it has another name then.

    Raises:
        OSError: it cannot be created.
    """
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            # A file system without locks: then nothing of it counts as a leftover either.
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def remove_leftover_files(directory: Path, names: Collection[str]) -> None:
    """Remove the unfinished files of killed processes that were to become files of these names.

    Where the file system has no locks, nothing is removed.
    """
    for path in directory.iterdir() if directory.is_dir() else ():
        match = TEMPORARY.fullmatch(path.name)
        if not (match and match["name"] in names and match["what"] == "partial"):
            continue
        if path.is_file() and (lock := _lock(path, wait=False, kind=0)) is not None:
            path.unlink(missing_ok=True)
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


def _lock(path: Path, wait: bool, kind: int = os.O_DIRECTORY) -> int | None:
    """Lock a directory, or a file; returns its descriptor, or None if it is or cannot be locked."""
    with suppress(FileNotFoundError):
        try:
            file = os.open(path, os.O_RDONLY | kind | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            # A link, of whatever; or a file of another user, who alone may remove it.
            if kind or error.errno not in (errno.ELOOP, errno.EACCES):
                raise
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            # Held by another process; or a file system without locks of directories, such as NFS.
            os.close(file)
            return None
        return file
    return None
