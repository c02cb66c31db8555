"""Images in shards, read in place: .tar files in WebDataset's layout, and ArrayRecord files."""

import tarfile
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.scan import PREFIX, LeftOut, hidden, is_image, other_kind, printable
from jax_unlearn.runtime.errors import UserError

SHARDS = {".tar", ".arrayrecord", ".array_record"}


@dataclass(frozen=True)
class TarMember(ImageFile):
    """A file in an uncompressed tar: its name, and the offset and size of its bytes."""

    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return printable(f"{self.path}/{self.member}")

    @property
    def entry(self) -> str:
        return printable(f"{self.label}/{self.path.name}/{self.member}: {self.size}")

    def source(self) -> BytesIO:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return BytesIO(file.read(self.size))


@dataclass(frozen=True)
class Record(ImageFile):
    """A record of an ArrayRecord file: the bytes of one image file."""

    number: int

    @property
    def name(self) -> str:
        return printable(f"{self.path}[{self.number}]")

    @property
    def entry(self) -> str:
        return printable(f"{self.label}/{self.path.name}[{self.number}]")

    def source(self) -> BytesIO:
        return BytesIO(records(self.path)[self.number])


@lru_cache(maxsize=64)
def records(path: Path) -> Any:
    """The open ArrayRecord file, indexed by record number."""
    # Imported here because it takes half a second, and folders do not need it.
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource([str(path)])


def images_of(shard: Path, label: str, left_out: LeftOut) -> list[ImageFile]:
    """All images of a shard, in its order.

    Args:
        shard: the shard.
        label: the class of images for which the shard gives none. A tar gives it in a .cls file
            next to the image (its text is the class), or as the first folder of the image's path.
        left_out: counts the members of a tar that are not images.

    Raises:
        UserError: the shard cannot be read.
    """
    try:
        if shard.suffix.lower() == ".tar":
            return _members(shard, label, left_out)
        return _records(shard, label)
    except (tarfile.TarError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{shard}: cannot be read ({error}); repair or remove it") from error


def _records(shard: Path, label: str) -> list[ImageFile]:
    return [Record(shard, label, number) for number in range(len(records(shard)))]


def _members(shard: Path, label: str, left_out: LeftOut) -> list[ImageFile]:
    with tarfile.open(shard, "r:") as tar:
        members = [member for member in tar if member.isfile()]
        classes = {_key(m.name): _text(tar, m) for m in members if m.name.endswith(".cls")}
    images = []
    with shard.open("rb") as file:
        for member in members:
            if any(map(hidden, PurePosixPath(member.name).parts)):
                left_out.add("hidden or system file", shard / member.name)
                continue
            file.seek(member.offset_data)
            if is_image(member.name, file.read(min(PREFIX, member.size))):
                images.append(member)
            elif not member.name.endswith(".cls"):
                left_out.add(other_kind(member.name), shard / member.name)
    return [
        TarMember(
            shard,
            printable(classes.get(_key(m.name)) or _folder(m.name) or label),
            m.name,
            m.offset_data,
            m.size,
        )
        for m in images
    ]


def _key(name: str) -> str:
    """Key of a WebDataset sample: a file's path up to the first dot of its name."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.split(".")[0])


def _folder(name: str) -> str:
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return parts[0] if len(parts) > 1 else ""


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    return file.read().decode().strip()
