"""Check the arguments of public functions that are no arrays."""

import os
from pathlib import Path
from typing import Any


def path_argument(name: str, value: Any) -> Path:
    """An argument as a path.

    Raises:
        TypeError: it is neither a text nor a path; names the argument.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
    return Path(value)


def instance_argument(name: str, value: Any, kind: type) -> None:
    """Check that an argument is of a class.

    Raises:
        TypeError: it is not; names the argument.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
