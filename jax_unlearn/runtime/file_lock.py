"""A lock that one process at a time holds on a directory, by a file in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_unlearn.runtime.errors import UserError

LOCK = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process holds the directory's lock, and hold it; a killed process does
    not hold it.

    Raises:
        UserError: the lock cannot be created, or the file system has none.
    """
    path = directory / LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; see that it can be written") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            reason = f"{error.strerror}; use a file system that can lock files"
            raise UserError(f"{path}: cannot be locked: {reason}") from error
        yield
    finally:
        os.close(file)
