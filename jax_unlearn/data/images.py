"""One image of a run: where its bytes are, and how they are decoded."""

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
    """One image and its class. path: of the file, or of the shard that holds it."""

    path: Path
    label: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def entry(self) -> str:
        """What a listing says of it: the same on every host that has it, wherever it is there."""
        return f"{self.label}/{self.path.name}: {self.path.stat().st_size}"

    def source(self) -> Path | BytesIO:
        """What Pillow opens."""
        return self.path

    @cached_property
    def digest(self) -> bytes:
        """Tells images apart by their bytes; read once, however often it is asked for."""
        source = self.source()
        data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        return hashlib.sha256(data).digest()


def open_image(source: Path | BytesIO) -> Image.Image:
    """Not decoded yet; for what is raised see `read_image`."""
    try:
        return Image.open(source)
    except UnidentifiedImageError as error:
        # Pillow's own message would hold an address in memory.
        raise ValueError("not an image that Pillow knows") from error


def read_image(source: Path | BytesIO) -> Image.Image:
    """Decode as RGB: EXIF orientation applied, a GIF's first frame, transparency on white.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow says of a file that is not an image.
        PIL.Image.DecompressionBombError: more pixels than Pillow thinks safe.
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
    """Decodes files one by one; those that cannot be read are skipped and remembered with why.

    With `strict`, the first of them raises UserError.
    """

    strict: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def read(self, files: Iterable[ImageFile]) -> Iterator[tuple[int, Image.Image]]:
        """(index of the file, image) for every file that can be read."""
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
