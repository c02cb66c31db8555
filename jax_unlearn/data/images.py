"""Image files: their location, digest and decoding."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jax_unlearn.runtime.errors import UserError


@dataclass(frozen=True)
class ImageFile:
    """An image and its class. path: of the image file, or of the shard that contains it."""

    path: Path
    label: str

    @property
    def name(self) -> str:
        """The image's name in messages."""
        return str(self.path)

    @property
    def entry(self) -> str:
        """Class, file name and size, which do not depend on where a host stores the file."""
        return f"{self.label}/{self.path.name}: {self.path.stat().st_size}"

    def source(self) -> Path | BytesIO:
        """A path or buffer for Pillow to open."""
        return self.path

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file's bytes; read once and cached."""
        source = self.source()
        data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        return hashlib.sha256(data).digest()


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open an image without decoding it; raises the same errors as `read_image`."""
    try:
        return Image.open(source)
    except UnidentifiedImageError as error:
        # Pillow's own message may contain a memory address.
        raise ValueError("not an image that Pillow knows") from error


def read_image(source: Path | BytesIO) -> Image.Image:
    """Decode as RGB: EXIF orientation applied, the first frame of a GIF, transparency on white.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot read the file.
        PIL.Image.DecompressionBombError: the image has more pixels than Pillow's limit.
    """
    with open_image(source) as file:
        file.seek(0)
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16") or image.mode == "I":
            # Pillow clips 16-bit greys to 255 instead of scaling them.
            image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype("u1"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


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
                self.skip(file, str(error))
                continue
            yield index, image

    def skip(self, file: ImageFile, reason: str) -> None:
        if self.strict:
            raise UserError(f"{file.name}: cannot be read ({reason}); repair or remove it")
        if (file.name, reason) not in self.skipped:
            self.skipped.append((file.name, reason))
