"""Image files: their location, digest and decoding."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jax_unlearn.data.scan import printable
from jax_unlearn.runtime.errors import UserError

# A small file may claim any size, and an image is decoded whole.
MOST_PIXELS, LARGEST_FILE = 10**8, 2**30


class Contents(NamedTuple):
    """SHA-256 of a file's bytes, and the reason why it cannot be decoded, or None."""

    digest: bytes
    fault: str | None


@dataclass(frozen=True)
class ImageFile:
    """An image and its class. path: of the image file, or of the shard that contains it."""

    path: Path
    label: str

    @property
    def name(self) -> str:
        """The image's name in messages."""
        return printable(str(self.path))

    @property
    def entry(self) -> str:
        """Class, file name and size, which do not depend on where a host stores the file."""
        return printable(f"{self.label}/{self.path.name}: {self.path.stat().st_size}")

    def source(self) -> Path | BytesIO:
        """A path or buffer for Pillow to open."""
        return self.path

    @cached_property
    def contents(self) -> "Contents":
        """Digest of the file's bytes and whether they decode; read once and cached."""
        try:
            source = self.source()
            data = read_bytes(source) if isinstance(source, Path) else source.getvalue()
        except UNREADABLE as error:
            return Contents(hashlib.sha256(self.name.encode()).digest(), reason(error))
        digest = hashlib.sha256(data).digest()
        try:
            read_image(BytesIO(data))
        except UNREADABLE as error:
            return Contents(digest, reason(error))
        return Contents(digest, None)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return self.contents.digest


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open an image without decoding it; raises the same errors as `read_image`."""
    try:
        image = Image.open(source)
    except UnidentifiedImageError as error:
        # Pillow's own message may contain a memory address.
        raise ValueError("not an image that Pillow knows") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ValueError(f"it has {width} × {height} pixels, and at most {MOST_PIXELS} are decoded")
    return image


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than any image that is decoded.
    """
    check_size(path.stat().st_size)
    return path.read_bytes()


def check_size(size: int) -> None:
    """Raise ValueError for a number of bytes that is larger than any image that is decoded."""
    if size > LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, and at most {LARGEST_FILE} are read")


def read_image(source: Path | BytesIO) -> Image.Image:
    """Decode as RGB: EXIF orientation applied, the first frame of a GIF, transparency on white.

    Raises:
        Exception: Pillow cannot decode the file; see `UNREADABLE`.
    """
    with open_image(source) as file:
        file.seek(0)
        image = upright(file)
        if image.mode.startswith("I;16") or image.mode == "I":
            # Pillow clips 16-bit greys to 255 instead of scaling them.
            image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype("u1"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image by its EXIF orientation, even if other tags are damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except UNREADABLE:
        orientation = None
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image.transpose(turn) if turn is not None else image.copy()


# Transposition by value of EXIF 2.3, tag 0x0112.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Decoders raise almost any exception for damaged files: struct.error, IndexError, zlib.error, …
UNREADABLE = (Exception,)


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


@dataclass
class ImageReader:
    """Decodes files one by one; skips files that cannot be read and records the reason.

    strict: raise UserError for the first such file instead. skipped: (name, reason) of each.
    """

    strict: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def read(self, files: Iterable[ImageFile]) -> Iterator[tuple[int, Image.Image]]:
        """Yields (index of the file, image) for every file that can be read."""
        for index, file in enumerate(files):
            try:
                image = read_image(file.source())
            except UNREADABLE as error:
                self.skip(file, reason(error))
                continue
            yield index, image

    def skip(self, file: ImageFile, reason: str) -> None:
        if self.strict:
            raise UserError(f"{file.name}: cannot be read ({reason}); repair or remove it")
        if (file.name, reason) not in self.skipped:
            self.skipped.append((file.name, reason))
