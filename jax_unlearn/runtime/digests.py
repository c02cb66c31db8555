"""SHA-256 digests of files that are written and read again, so that damage is noticed.

A JSON file has the digest of its other fields under `digest`. digests.json has those of other files
of its directory, and of the checkpoint's adapted Linears.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json

FILE, DIGEST = "digests.json", "digest"
CURE = "restore it, or run again"


def to_text(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def sealed(content: Mapping[str, Any]) -> str:
    """JSON of an object with its digest."""
    return to_text({**content, DIGEST: of_text(to_text(dict(content)))})


def read_sealed(path: Path) -> dict[str, Any]:
    """The object of a JSON file that `sealed` made, without the digest.

    Raises:
        UserError: the file cannot be read or was changed.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {CURE}") from error
    if not isinstance(content, dict) or DIGEST not in content:
        raise UserError(f"{path}: was made by an earlier version, or changed; run again")
    digest = content.pop(DIGEST)
    try:
        found = of_text(to_text(content))
    except ValueError as error:
        raise changed(path) from error
    if digest != found:
        raise changed(path)
    return content


def of_text(text: str) -> str:
    """SHA-256 (hex) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_bytes(data: bytes) -> str:
    """SHA-256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def changed(path: Path) -> UserError:
    return UserError(f"{path}: has changed since it was written (its digest differs); {CURE}")


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray], facts: str) -> str:
    """SHA-256 (hex) of a text and of arrays with their names, dtypes and shapes."""
    total = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        # As bytes, because a buffer has no bfloat16 and no empty array.
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def write_digests(directory: Path, names: Iterable[str], linears: Mapping[str, str]) -> None:
    """Write digests.json.

    Args:
        directory: the directory, which has the files.
        names: paths of the files in it.
        linears: digest of each adapted Linear of the checkpoint.
    """
    files = {name: of_file(directory / name) for name in names}
    content = {"files": files, "linears": dict(linears)}
    (directory / FILE).write_text(sealed(content), encoding="utf-8")


def check_digests(directory: Path, *names: str) -> dict[str, str]:
    """Check files of a directory against its digests.json.

    Returns:
        The digest of each adapted Linear of the checkpoint.

    Raises:
        UserError: a file is missing or was changed, or digests.json is; names it.
    """
    path = directory / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run of an earlier version: run again")
    stored = read_sealed(path)
    for name in names:
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file}: no such file; {CURE}")
        if stored["files"].get(name) != of_file(file):
            raise changed(file)
    return dict(stored["linears"])
