"""Read text and JSON that others wrote: regular files of bounded size and depth."""

import json
from pathlib import Path
from typing import Any

# Bytes; the index of the largest checkpoints and the longest lists of names have a few million.
LARGEST = 100 * 2**20


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or is not a regular file, which might never end.
        ValueError: it is too large, or not in this encoding.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size} bytes, and at most {LARGEST} are read")
    return path.read_text(encoding=encoding)


def encodable(text: str) -> str:
    """Text that can be written as UTF-8: bytes of file names that are not become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        OSError: see `read_text`.
        ValueError: see `read_text`; or it is not JSON, or nested too deeply.
    """
    return of_json(read_text(path))


def of_json(text: str) -> Any:
    """The JSON in a text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
