"""Images in shards: tar, zip, ArrayRecord and parquet files."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jax_unlearn.data.archives import tar_images, zip_images
from jax_unlearn.data.images import ImageFile, reason
from jax_unlearn.data.members import ShardImage
from jax_unlearn.data.parquet import parquet_images
from jax_unlearn.data.scan import LeftOut, printable
from jax_unlearn.runtime.errors import UserError


@dataclass(frozen=True)
class Record(ShardImage):
    """A record of an ArrayRecord file: the bytes of one image file."""

    number: int

    def source(self) -> BytesIO:
        return BytesIO(records(self.path)[self.number])


@lru_cache(maxsize=64)
def records(path: Path) -> Any:
    """The open ArrayRecord file, indexed by record number."""
    # Imported here because it takes half a second, and folders do not need it.
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource([str(path)])


def record_images(shard: Path, label: str, left_out: LeftOut) -> Iterator[ImageFile]:
    """The records of an ArrayRecord file, each of which is an image."""
    for number in range(len(records(shard))):
        yield Record(shard, label, f"[{number}]", number)


TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
READERS: dict[tuple[str, ...], Callable[[Path, str, LeftOut], Iterator[ImageFile]]] = {
    TAR: tar_images,
    (".zip",): zip_images,
    (".arrayrecord", ".array_record"): record_images,
    (".parquet",): parquet_images,
}


def is_shard(path: Path) -> bool:
    """Whether a file is a shard, by its suffix."""
    return _reader(path) is not None


def images_of(shard: Path, label: str, left_out: LeftOut) -> list[ImageFile]:
    """All images of a shard, in its order.

    A member or record that is damaged is listed, so that it is reported as an image that cannot be
    read. A shard whose index is damaged may hide any number of images, and is refused.

    Args:
        shard: the shard.
        label: the class of images for which the shard gives none. An archive gives it in a .cls
            file next to the image (its text is the class), or as the first folder of the image's
            path; a parquet file in its label column.
        left_out: counts the members of an archive that are not images.

    Raises:
        UserError: the shard cannot be read.
    """
    read = _reader(shard)
    assert read is not None
    try:
        return list(read(shard, label, left_out))
    except (tarfile.TarError, zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{printable(str(shard))}: cannot be read ({reason(error)}); repair or remove it"
        ) from error


def _reader(path: Path) -> Callable[[Path, str, LeftOut], Iterator[ImageFile]] | None:
    name = path.name.lower()
    return next((read for suffixes, read in READERS.items() if name.endswith(suffixes)), None)
