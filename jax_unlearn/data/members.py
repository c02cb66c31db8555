"""Images inside shards: where the bytes of each are, and which files of an archive are images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from jax_unlearn.data.images import UNREADABLE, ImageFile, check_size, reason
from jax_unlearn.data.scan import PREFIX, LeftOut, hidden, is_image, other_kind, printable


@dataclass(frozen=True)
class ShardImage(ImageFile):
    """An image in a shard. inside: its place there, such as "/cat/a.png" or "[3]"."""

    inside: str

    @property
    def name(self) -> str:
        return printable(f"{self.path}{self.inside}")

    @property
    def entry(self) -> str:
        return printable(f"{self.label}/{self.path.name}{self.inside}")


@dataclass(frozen=True)
class Slice(ShardImage):
    """An image whose bytes lie in one piece in `file`, the shard or an unpacked copy of it."""

    file: Path
    offset: int
    size: int

    @property
    def entry(self) -> str:
        return f"{super().entry}: {self.size}"

    def source(self) -> BytesIO:
        check_size(self.size)
        data = read_at(self.file, self.offset, self.size)
        if len(data) < self.size:
            raise ValueError(f"the shard ends after {len(data)} of its {self.size} bytes")
        return BytesIO(data)


@dataclass(frozen=True)
class Unreadable(ShardImage):
    """An image that is known to be unreadable, or a damaged part of a shard. why: the reason."""

    why: str

    def source(self) -> BytesIO:
        raise ValueError(self.why)


def read_at(file: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; fewer if the file ends before."""
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    read: returns its first bytes, at most as many as asked for, or all for -1; raises any exception
    if it cannot be read. image: the member as an image of a class.
    """

    name: str
    read: Callable[[int], bytes]
    image: Callable[[str], ShardImage]


def images_of_members(
    shard: Path, members: Sequence[Member], label: str, left_out: LeftOut
) -> Iterator[ShardImage]:
    """The images among the files of an archive, in its order.

    An image's class is the text of the .cls file of the same WebDataset key, or else the first
    folder of its path, or else `label`. A member that cannot be read counts as an image, so that it
    is reported with the reason; so does an image whose .cls file cannot be read.

    Args:
        shard: the archive.
        members: its files.
        label: the class of images for which the archive gives none.
        left_out: counts hidden members and those that are not images.
    """
    shown = []
    for member in members:
        if any(map(hidden, PurePosixPath(member.name).parts)):
            left_out.add("hidden or system file", _path(shard, member))
        else:
            shown.append(member)
    classes = {_key(m.name): m for m in shown if m.name.endswith(".cls")}
    labelled = set()
    for member in shown:
        key = _key(member.name)
        if classes.get(key) is member:
            continue
        try:
            prefix = member.read(PREFIX)
        except UNREADABLE as error:
            yield _unreadable(shard, member, label, reason(error))
            continue
        if not is_image(member.name, prefix):
            left_out.add(other_kind(member.name), _path(shard, member))
            continue
        labelled.add(key)
        try:
            given = classes[key].read(-1).decode().strip() if key in classes else ""
        except UNREADABLE as error:
            why = f"its class, {printable(classes[key].name)}, cannot be read: {reason(error)}"
            yield _unreadable(shard, member, label, why)
            continue
        yield member.image(printable(given or _folder(member.name) or label))
    for key in classes.keys() - labelled:
        left_out.add(".cls file without an image", _path(shard, classes[key]))


def _unreadable(shard: Path, member: Member, label: str, why: str) -> Unreadable:
    return Unreadable(shard, printable(_folder(member.name) or label), f"/{member.name}", why)


def _path(shard: Path, member: Member) -> Path:
    # Not `shard / name`, since a member's name may be an absolute path.
    return Path(f"{shard}/{member.name}")


def _key(name: str) -> str:
    """Key of a WebDataset sample: a file's path up to the first dot of its name."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.split(".")[0])


def _folder(name: str) -> str:
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return parts[0] if len(parts) > 1 else ""
