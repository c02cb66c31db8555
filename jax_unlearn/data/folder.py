"""Folders of images: which files they hold, what they are called, and how one is decoded."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jax_unlearn.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
HELD_OUT = 1 / 5


@dataclass(frozen=True)
class ImageFile:
    """One image and the class that its folder gives it."""

    path: Path
    label: str

    @cached_property
    def digest(self) -> bytes:
        """Tells images apart by their bytes; read once, however often it is asked for."""
        return hashlib.sha256(self.path.read_bytes()).digest()


def find_images(folder: Path, default_label: str) -> list[ImageFile]:
    """Every image below `folder`, sorted; its class is the first sub-folder, or `default_label`.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder}: no images here ({', '.join(sorted(SUFFIXES))})")
    return [ImageFile(path, _label(path.relative_to(folder), default_label)) for path in paths]


def _label(relative: Path, default_label: str) -> str:
    return relative.parts[0] if len(relative.parts) > 1 else default_label


def read_image(path: Path) -> Image.Image:
    """Decode as RGB: EXIF orientation applied, a GIF's first frame, transparency on white.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow says of a file that is not an image.
        PIL.Image.DecompressionBombError: more pixels than Pillow thinks safe.
    """
    with Image.open(path) as file:
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
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def read(self, files: Iterable[ImageFile]) -> Iterator[tuple[int, Image.Image]]:
        """(index of the file, image) for every file that can be read."""
        for index, file in enumerate(files):
            try:
                image = read_image(file.path)
            except UNREADABLE as error:
                self.skip(file.path, error)
                continue
            yield index, image

    def skip(self, path: Path, error: Exception) -> None:
        if self.strict:
            raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
        self.skipped.append((path, str(error)))


def split_held_out(
    files: Sequence[ImageFile], seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """(training, held-out): a seeded fifth of each class is held out, at least one of two.

    Copies of a held-out image (the same bytes) are held out with it.

    Raises:
        UserError: so few images that nothing would be left to train on or to test with.
    """
    # A dict for an ordered set: the draw must not depend on hashing.
    by_label: dict[str, dict[bytes, None]] = defaultdict(dict)
    for file in files:
        by_label[file.label][file.digest] = None
    rng = np.random.default_rng(seed)
    held: set[bytes] = set()
    for label in sorted(by_label):
        group = list(by_label[label])
        count = math.ceil(len(group) * HELD_OUT) if len(group) > 1 else 0
        held |= {group[i] for i in rng.permutation(len(group))[:count]}
    if not held:
        raise UserError(
            f"{files[0].path.parent}: one image a class leaves none to test with; "
            "give two or more, or a folder of held-out images"
        )
    train = [file for file in files if file.digest not in held]
    return train, [file for file in files if file.digest in held]


def check_disjoint(groups: Mapping[str, Sequence[ImageFile]]) -> None:
    """Refuse an image (the same bytes) that stands in two groups, e.g. forget and preserve.

    Raises:
        UserError: names both files and both groups.
    """
    seen: dict[bytes, tuple[str, Path]] = {}
    for group, files in groups.items():
        for file in files:
            other, path = seen.setdefault(file.digest, (group, file.path))
            if other != group:
                raise UserError(
                    f"{file.path}: the same image as {path}, but one is {group} and the other "
                    f"{other}; remove one"
                )
