"""The files in tar and zip archives, which are read in place or from an unpacked copy."""

import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.members import (
    Member,
    ShardImage,
    Slice,
    Unreadable,
    images_of_members,
    read_at,
)
from jax_unlearn.data.scan import LeftOut, printable
from jax_unlearn.data.unpacked import decompressed, is_compressed

# Bytes after a tar's end mark that are checked to be empty; tar pads files to 10 KiB.
PADDING = 1 << 16
# tarfile reads an extended header of any size that it claims.
CLAIMS = "a header claims more memory than there is"
# What tarfile raises as it reads a header of a size that is claimed.
OF_CLAIMS = (MemoryError, OverflowError)


def tar_images(shard: Path, label: str, left_out: LeftOut) -> Iterator[ImageFile]:
    """The images of a tar, which may be compressed; see `images_of_members`.

    Links to members of the same tar are followed. If the tar is cut or damaged between its members,
    those before are read, and the rest is reported as one unreadable image.

    Raises:
        tarfile.TarError: the file is not a tar.
    """
    file, fault = decompressed(shard) if is_compressed(shard) else (shard, None)
    try:
        found, damage = _headers(file)
    except (tarfile.ReadError, *OF_CLAIMS) as error:
        at_start = CLAIMS if isinstance(error, OF_CLAIMS) else str(error)
        raise tarfile.ReadError(fault or at_start) from error
    members, files = [], {info.name: info for info in found if info.isreg()}
    for info in found:
        data = files.get(_target(info))
        if data is not None:
            members.append(_tar_member(shard, file, info.name, data))
        elif not info.isdir():
            left_out.add("link or device in a tar", Path(f"{shard}/{info.name}"))
    yield from images_of_members(shard, members, label, left_out)
    if why := fault or damage:
        after = f"after {printable(found[-1].name)}" if found else "at its start"
        why = f"the shard is cut or damaged {after} ({why}); what follows is lost"
        yield Unreadable(shard, label, "", why)


def _headers(file: Path) -> tuple[list[tarfile.TarInfo], str | None]:
    """The members of an uncompressed tar, and what is wrong with its end, or None.

    tarfile ends its list without an error at a damaged header, so the end mark is checked.
    """
    found: list[tarfile.TarInfo] = []
    with tarfile.open(file, "r:") as tar:
        try:
            for info in tar:
                found.append(info)
        except tarfile.ReadError as error:
            return found, str(error)
        except OF_CLAIMS:
            return found, CLAIMS
        end = tar.offset
    mark = read_at(file, end, tarfile.BLOCKSIZE + PADDING)
    if len(mark) < tarfile.BLOCKSIZE:
        return found, "it has no end mark"
    if any(mark[: tarfile.BLOCKSIZE]):
        return found, "the header of the next member is damaged"
    return found, "data after the end mark" if any(mark) else None


def _target(info: tarfile.TarInfo) -> str:
    """Name of the member that contains a member's bytes: its own, or that of a link's target."""
    if info.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
    return info.linkname if info.islnk() else info.name


def _tar_member(shard: Path, file: Path, name: str, data: tarfile.TarInfo) -> Member:
    def read(count: int) -> bytes:
        return read_at(file, data.offset_data, data.size if count < 0 else min(count, data.size))

    def image(label: str) -> Slice:
        return Slice(shard, label, f"/{name}", file, data.offset_data, data.size)

    return Member(name, read, image)


@dataclass(frozen=True)
class ZipImage(ShardImage):
    """A member of a zip by its number, since several may have one name."""

    number: int
    size: int

    @property
    def entry(self) -> str:
        return f"{super().entry}: {self.size}"

    def source(self) -> BytesIO:
        return BytesIO(_read_zip(self.path, self.number, -1))


def zip_images(shard: Path, label: str, left_out: LeftOut) -> Iterator[ImageFile]:
    """The images of a zip; see `images_of_members`.

    Raises:
        zipfile.BadZipFile: the file is not a zip, or its directory is damaged.
    """
    members = [
        _zip_member(shard, number, info)
        for number, info in enumerate(_opened_zip(shard).infolist())
        if not info.is_dir()
    ]
    return images_of_members(shard, members, label, left_out)


def _zip_member(shard: Path, number: int, info: zipfile.ZipInfo) -> Member:
    def image(label: str) -> ZipImage:
        return ZipImage(shard, label, f"/{info.filename}", number, info.file_size)

    return Member(info.filename, partial(_read_zip, shard, number), image)


def _read_zip(shard: Path, number: int, count: int) -> bytes:
    opened = _opened_zip(shard)
    info = opened.infolist()[number]
    # Bit 0 of a member's flags.
    if info.flag_bits & 1:
        raise ValueError("encrypted")
    with opened.open(info) as file:
        return file.read(count)


@lru_cache(maxsize=64)
def _opened_zip(shard: Path) -> zipfile.ZipFile:
    """A zip with its directory parsed, once per process; threads may read members at once."""
    return zipfile.ZipFile(shard)
