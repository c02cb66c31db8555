"""Temporary copies of shards whose images cannot be read one by one where they are.

In a compressed tar, an image can be read only by decompressing all that precedes it; in a parquet
file, by decoding its row group, which may be the whole file. Images are read in several orders: in
that of the shard to be checked, by size into batches, and again in worker processes. Therefore such
a shard is read once from start to end, with little memory, and its images are written one after
another to one temporary file, from which each is read at its offset. This needs free disk space of
the size of the images, and is said in a warning. The copies belong to the process that lists the
images, and are removed when it exits.
"""

import bz2
import gzip
import lzma
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from jax_unlearn.data.images import reason
from jax_unlearn.data.scan import printable
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.temporary_files import temporary_folder

# By the first bytes of a file, since .tar files may be compressed and .tar.gz files may not.
OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
# Bytes that are decompressed at a time.
CHUNK = 1 << 20


class Copy:
    """A temporary file that is being written. size: number of bytes written so far."""

    def __init__(self, shard: Path, file: BinaryIO) -> None:
        self.shard, self.file, self.size = shard, file, 0

    def write(self, data: bytes) -> int:
        """Append bytes; returns the offset at which they begin.

        Raises:
            UserError: they cannot be written.
        """
        try:
            self.file.write(data)
            # Otherwise an error would appear when the file is closed.
            self.file.flush()
        except OSError as error:
            raise _refusal(self.shard, error) from error
        self.size += len(data)
        return self.size - len(data)


@contextmanager
def temporary_copy(shard: Path) -> Iterator[tuple[Copy, Path]]:
    """(copy to write, its path) of a shard; a warning names the shard once the block ends.

    Raises:
        UserError: the copy cannot be created or written; it is removed.
    """
    try:
        number, name = tempfile.mkstemp(dir=temporary_folder())
    except OSError as error:
        raise _refusal(shard, error) from error
    path = Path(name)
    try:
        with open(number, "wb") as file:
            copy = Copy(shard, file)
            yield copy, path
    except BaseException:
        path.unlink()
        raise
    warnings.warn(
        f"{printable(str(shard))}: unpacked into a temporary file until the end of the run "
        f"({copy.size / 1e6:.1f} MB in {tempfile.gettempdir()}), since its images cannot be read "
        "one by one",
        stacklevel=2,
    )


def _refusal(shard: Path, error: OSError) -> UserError:
    return UserError(
        f"{printable(str(shard))}: cannot be unpacked into {tempfile.gettempdir()} "
        f"({reason(error)}); set TMPDIR to a folder with more space, or unpack it yourself"
    )


def is_compressed(shard: Path) -> bool:
    """Whether a file is compressed by gzip, bzip2 or xz, by its content."""
    return _opener(shard) is not None


def decompressed(shard: Path) -> tuple[Path, str | None]:
    """Decompress a file, once per process.

    Returns:
        The temporary file with its contents, and the reason why they are incomplete, or None.

    Raises:
        UserError: the temporary file cannot be written.
    """
    return _decompressed(shard, *version(shard))


def version(shard: Path) -> tuple[int, int]:
    """Time of change and size of a file; what is cached of a file holds for these."""
    stat = shard.stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _decompressed(shard: Path, changed: int, size: int) -> tuple[Path, str | None]:
    opener = _opener(shard)
    assert opener is not None
    with temporary_copy(shard) as (copy, path), opener(shard, "rb") as file:
        while True:
            try:
                data = file.read1(CHUNK)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                return path, reason(error)
            if not data:
                return path, None
            copy.write(data)


def _opener(shard: Path) -> Callable[..., Any] | None:
    with shard.open("rb") as file:
        first = file.read(max(map(len, OPENERS)))
    return next((opener for magic, opener in OPENERS.items() if first.startswith(magic)), None)
