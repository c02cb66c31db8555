"""Find the images in a folder."""

from pathlib import Path

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.shards import IMAGES, SHARDS, images_of
from jax_unlearn.runtime.errors import UserError


def find_images(folder: Path, default_label: str) -> list[ImageFile]:
    """Every image below `folder`, sorted by path.

    An image's class is its first sub-folder, or `default_label`. Images in shards (see
    `shards.images_of`) take the place of their shard.

    Args:
        folder: a folder, or a single shard.

    Raises:
        UserError: the folder does not exist or holds no image, or a shard cannot be read.
    """
    if not (folder.is_dir() or (folder.is_file() and folder.suffix.lower() in SHARDS)):
        raise UserError(f"{folder}: no such folder of images")
    suffixes = IMAGES | SHARDS
    below = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    found: list[ImageFile] = []
    for path in below if folder.is_dir() else [folder]:
        label = _label(path.relative_to(folder), default_label)
        shard = path.suffix.lower() in SHARDS
        found += images_of(path, label) if shard else [ImageFile(path, label)]
    if not found:
        raise UserError(f"{folder}: no images here ({', '.join(sorted(suffixes))})")
    return found


def _label(relative: Path, default_label: str) -> str:
    return relative.parts[0] if len(relative.parts) > 1 else default_label
