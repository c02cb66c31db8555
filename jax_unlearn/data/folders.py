"""Find the images of a folder and their classes."""

from pathlib import Path

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.scan import LeftOut, files_below, kind_of, printable
from jax_unlearn.data.shards import images_of, is_shard
from jax_unlearn.runtime.errors import UserError


def find_images(
    folder: Path, default_label: str, left_out: LeftOut | None = None
) -> list[ImageFile]:
    """Every image below `folder`, sorted by path.

    An image's class is its first sub-folder, or `default_label`. Images are recognised by their
    content. Links are followed, each real folder once. Images in shards (see `shards.images_of`)
    take the place of their shard.

    Args:
        folder: a folder, or a single shard.
        default_label: class of the images that are not in a sub-folder.
        left_out: counts the files that are not images.

    Raises:
        UserError: the folder does not exist or holds no image, or a shard cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    if not (folder.is_dir() or (folder.is_file() and is_shard(folder))):
        raise UserError(f"{printable(str(folder))}: no such folder of images")
    found: list[ImageFile] = []
    for path in sorted(files_below(folder, left_out)) if folder.is_dir() else [folder]:
        label = _label(path.relative_to(folder), default_label)
        if is_shard(path):
            found += images_of(path, label, left_out)
        elif kind := kind_of(path):
            left_out.add(kind, path)
        else:
            found.append(ImageFile(path, label))
    if not found:
        there = "; ".join(left_out.lines())
        what = f" ({there})" if there else ""
        raise UserError(f"{printable(str(folder))}: no images here{what}")
    return found


def _label(relative: Path, default_label: str) -> str:
    return printable(relative.parts[0] if len(relative.parts) > 1 else default_label)
