"""Preprocess images as a checkpoint's image processor does, with Pillow and NumPy.

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
CLIP = ("CLIPImageProcessor", "CLIPFeatureExtractor")
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
    if max_pixels < ours.smallest:
        raise UserError(f"--max-pixels {max_pixels}: {path} needs at least {ours.smallest}")
    return replace(ours, largest=min(ours.largest, max_pixels))


def read_preprocessor(checkpoint_dir: Path) -> Preprocessor:
    """The image processor of a Qwen3 checkpoint, with the settings of its file.

    Raises:
        UserError: the file is missing, or is not of a Qwen processor.
    """
    config = ProcessorConfig(checkpoint_dir, QWEN)
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


@dataclass(frozen=True)
class CropPreprocessor:
    """Resizes and crops an image to the size of CLIP's image encoder.

    pixels: resampling and normalisation. shortest: length of the shorter side after resizing; or
    size: (height, width) after resizing. crop: (height, width), or None without cropping.
    """

    pixels: PixelSettings
    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "c h w"]:
        """The pixel values of an image."""
        image = image.convert("RGB")
        if self.pixels.resample is not None:
            height, width = self.size or self._by_shortest(image.height, image.width)
            image = image.resize((width, height), self.pixels.resample)
        return self.pixels.normalised(self._cropped(image) if self.crop else image)

    def _by_shortest(self, height: int, width: int) -> tuple[int, int]:
        assert self.shortest is not None
        long = int(self.shortest * max(height, width) / min(height, width))
        return (long, self.shortest) if width <= height else (self.shortest, long)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The centre of the image; a smaller image is padded with black."""
        assert self.crop is not None
        (height, width), (crop_height, crop_width) = (image.height, image.width), self.crop
        top, left = (
            (have - want) // 2 for have, want in ((height, crop_height), (width, crop_width))
        )
        # An odd margin around a smaller image is larger at the top and left.
        return image.crop((left, top, left + crop_width, top + crop_height))

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """A uniform image of `size` (width, height) that is zero after normalisation."""
        return self.pixels.blank(size)


def load_clip_preprocessor(checkpoint_dir: Path, side: int) -> CropPreprocessor:
    """The image processor of a CLIP checkpoint.

    Args:
        checkpoint_dir: the checkpoint.
        side: height and width of the images that the encoder takes.

    Raises:
        UserError: the file is missing, is not of a CLIP processor, or gives another size.
    """
    config = ProcessorConfig(checkpoint_dir, CLIP)
    pixels, size = config.pixels(), config.values.get("size", 224)
    shortest, both = None, None
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        both = config.positive("size", size["height"]), config.positive("size", size["width"])
    elif isinstance(size, dict) and set(size) == {"shortest_edge"}:
        shortest = config.positive("size", size["shortest_edge"])
    elif isinstance(size, dict):
        raise config.refusal(
            f"size has {sorted(size)}, and shortest_edge, or height and width, are read"
        )
    else:
        shortest = config.positive("size", size)
    crop = config.values.get("crop_size", 224) if config.flag("do_center_crop") else None
    if isinstance(crop, dict):
        keys = ("height", "width")
        crop = tuple(config.positive("crop_size", crop.get(key)) for key in keys)
    elif crop is not None:
        crop = (config.positive("crop_size", crop),) * 2
    found = CropPreprocessor(pixels, shortest, both, crop)
    shape = found(Image.new("RGB", (2 * side + 1, side))).shape
    if shape != (3, side, side):
        raise config.refusal(
            f"gives images of {shape[2]} × {shape[1]} pixels, and the tower takes {side} × {side}"
        )
    return found
