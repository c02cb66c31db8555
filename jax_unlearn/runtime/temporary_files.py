"""Temporary files that several parts of a run share, removed when the process exits."""

import atexit
import tempfile
from functools import cache
from pathlib import Path


def temporary_folder() -> Path:
    """The temporary folder of this process, in TMPDIR; created by the first call.

    It is removed at exit. A process that is killed leaves it behind.
    """
    return Path(_folder().name)


def remove_temporary_folder() -> None:
    """Remove the folder before `os._exit`, which skips what runs at exit."""
    if _folder.cache_info().currsize:
        _folder().cleanup()


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory(prefix="jax-unlearn-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return folder
