"""Preprocess images as a Qwen3 checkpoint's image processor does, with Pillow and NumPy.

Gives the same arrays as transformers' processors with the PIL backend, bit for bit
(tests/data/test_preprocess.py), without transformers or torch.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jax_unlearn.data.processor_config import PixelSettings, ProcessorConfig, processor_file
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runtime.errors import UserError

QWEN = ("Qwen2VLImageProcessor", "Qwen3VLImageProcessor")
# Largest aspect ratio that the towers accept.
LONGEST_ASPECT = 200


@dataclass(frozen=True)
class Preprocessor:
    """Converts an image of any size into patches for a Qwen3 tower.

    pixels: resampling and normalisation. patch: side of a patch. merge: side of a merge block, in
    patches. frames: frames per patch. smallest, largest: bounds of the resized image's area, in
    pixels.
    """

    pixels: PixelSettings
    patch: int
    merge: int
    frames: int
    smallest: int
    largest: int

    def __call__(
        self, image: Image.Image
    ) -> tuple[Float[np.ndarray, "patches patch"], Int[np.ndarray, "1 3"]]:
        """(pixel_values, grid_thw) of one image.

        Raises:
            ValueError: the aspect ratio is above 200, or the processor does not resize and the
                image's sides are not multiples of a merge block.
        """
        height, width = self.resized(image.height, image.width)
        if (width, height) != image.size:
            assert self.pixels.resample is not None
            image = image.convert("RGB").resize((width, height), self.pixels.resample)
        found = self.pixels.normalised(image)
        rows, columns = height // self.patch, width // self.patch
        merge, patch = self.merge, self.patch
        split = found.reshape(-1, rows // merge, merge, patch, columns // merge, merge, patch)
        # Patches are ordered by merge block; within a patch: channels, frames, rows, columns.
        ordered = np.transpose(split, (1, 4, 2, 5, 0, 3, 6))[:, :, :, :, :, None]
        every = np.broadcast_to(ordered, (*ordered.shape[:5], self.frames, patch, patch))
        return every.reshape(rows * columns, self.patch_dim), np.array([[1, rows, columns]])

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch: channels × frames × height × width."""
        return 3 * self.frames * self.patch**2

    def patches(self, size: tuple[int, int]) -> int:
        """The number of patches of an image of `size` (width, height).

        Raises:
            ValueError: see `__call__`.
        """
        height, width = self.resized(size[1], size[0])
        return (height // self.patch) * (width // self.patch)

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """A uniform image of `size` (width, height) that is zero after normalisation."""
        return self.pixels.blank(size)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing: multiples of a merge block, with a bounded area.

        Raises:
            ValueError: see `__call__`.
        """
        block = self.patch * self.merge
        if max(height, width) > LONGEST_ASPECT * min(height, width):
            raise ValueError(f"{width} × {height} pixels: an aspect ratio above {LONGEST_ASPECT}")
        if self.pixels.resample is None:
            if height % block or width % block:
                raise ValueError(
                    f"{width} × {height} pixels: the checkpoint's processor does not resize, and "
                    f"its sides must be multiples of {block}"
                )
            return height, width
        near = round(height / block) * block, round(width / block) * block
        if math.prod(near) > self.largest:
            shrink = math.sqrt(height * width / self.largest)
            return tuple(
                max(block, math.floor(side / shrink / block) * block) for side in (height, width)
            )  # type: ignore[return-value]
        if math.prod(near) < self.smallest:
            grow = math.sqrt(self.smallest / (height * width))
            return tuple(math.ceil(side * grow / block) * block for side in (height, width))  # type: ignore[return-value]
        return near


def load_preprocessor(checkpoint_dir: Path, tower: VisionConfig, max_pixels: int) -> Preprocessor:
    """The image processor of a Qwen3 checkpoint, with at most `max_pixels` per image.

    Args:
        checkpoint_dir: the checkpoint.
        tower: the tower whose patch sizes the processor must have.
        max_pixels: images are scaled down to at most this area; the cost of attention grows with
            its square.

    Raises:
        UserError: the file is missing, is not of a Qwen processor, belongs to another tower, or
            `max_pixels` is below its smallest image.
    """
    path, ours = processor_file(checkpoint_dir), read_preprocessor(checkpoint_dir)
    found = [ours.patch, ours.merge, ours.frames]
    wanted = [tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size]
    if found != wanted:
        raise UserError(
            f"{path}: patch, merge and temporal patch size are {found}, but config.json's tower "
            f"has {wanted}"
        )
    return limited(ours, max_pixels, path)


def limited(preprocessor: Preprocessor, max_pixels: int, path: Path) -> Preprocessor:
    """The same with at most `max_pixels` per image; `path` is its file.

    Raises:
        UserError: `max_pixels` is below its smallest image.
    """
    smallest = preprocessor.smallest
    if max_pixels < smallest:
        raise UserError(f"--max-pixels {max_pixels}: {path} needs at least {smallest}")
    return replace(preprocessor, largest=min(preprocessor.largest, max_pixels))


def read_preprocessor(checkpoint_dir: Path) -> Preprocessor:
    """The image processor of a Qwen3 checkpoint, with the settings of its file.

    Raises:
        UserError: the file is missing, or is not of a Qwen processor.
    """
    config = ProcessorConfig.of(checkpoint_dir, QWEN)
    patch, merge = config.whole("patch_size", 14), config.whole("merge_size", 2)
    frames = config.whole("temporal_patch_size", 2)
    return Preprocessor(config.pixels(), patch, merge, frames, *areas(config))


def areas(config: ProcessorConfig) -> tuple[int, int]:
    """The smallest and largest area in pixels, from min_pixels and max_pixels, or from size.

    Raises:
        UserError: `size` is needed and is not an object with shortest_edge and longest_edge.
    """
    size = config.values.get("size")
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280} if size is None else size
    keys = ("shortest_edge", "longest_edge")
    own = [config.values.get(name) for name in ("min_pixels", "max_pixels")]
    if None in own and not (isinstance(size, dict) and set(keys) <= set(size)):
        shown = sorted(size) if isinstance(size, dict) else size
        raise config.refusal(f"size has {shown}, and shortest_edge and longest_edge are read")
    found = [
        config.positive(key, size[key] if value is None else value)
        for key, value in zip(keys, own, strict=True)
    ]
    return found[0], found[1]
