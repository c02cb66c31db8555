"""Preprocess images as a CLIP checkpoint's image processor does, with Pillow and NumPy.

Gives the same arrays as transformers' processors with the PIL backend, bit for bit
(tests/data/test_preprocess.py); and the pixels of OpenCLIP's own transform where only its config
describes one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jax_unlearn.data.processor_config import (
    CLIP_MEAN,
    CLIP_STD,
    PixelSettings,
    ProcessorConfig,
    has_processor,
    read_object,
)
from jax_unlearn.runtime.hub import OPEN_CONFIG, local_checkpoint

CLIP = ("CLIPImageProcessor", "CLIPFeatureExtractor")
# OpenCLIP's names of the filters; with `random`, which is of training, it resamples by bicubic.
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,
}
MODES = ("shortest", "longest", "squash")
# OpenCLIP takes the size from the model, and knows no other mode of an image than RGB.
OPEN_FIELDS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


@dataclass(frozen=True)
class CropPreprocessor:
    """Resizes and crops an image to the size of CLIP's image encoder.

    pixels: resampling and normalisation. shortest: length of the shorter side after resizing; or
    size: (height, width) after resizing; or longest: length of the longer side. crop: (height,
    width), or None without cropping. by_torchvision: odd margins are rounded as in torchvision's
    CenterCrop, which OpenCLIP uses. fill: value of the pixels around a smaller image.
    """

    pixels: PixelSettings
    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    longest: int | None = None
    by_torchvision: bool = False
    fill: int = 0

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "c h w"]:
        """The pixel values of an image."""
        image = image.convert("RGB")
        if self.pixels.resample is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), self.pixels.resample)
        return self.pixels.normalised(self._cropped(image) if self.crop else image)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.longest is not None:
            ratio = max(height, width) / self.longest
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        assert self.shortest is not None
        long = int(self.shortest * max(height, width) / min(height, width))
        return (long, self.shortest) if width <= height else (self.shortest, long)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The centre of the image; a smaller image is padded with `fill`."""
        assert self.crop is not None
        height, width = self.crop
        corner = -self._margin(image.width, width), -self._margin(image.height, height)
        canvas = Image.new("RGB", (width, height), (self.fill,) * 3)
        canvas.paste(image, corner)
        return canvas

    def _margin(self, have: int, want: int) -> int:
        """Pixels to drop at the left or top; negative for pixels to add.

        An odd margin around a smaller image is larger at the left and top in transformers, at the
        right and bottom in OpenCLIP. Of a larger image, OpenCLIP rounds half a pixel to even.
        """
        if not self.by_torchvision:
            return (have - want) // 2
        return round((have - want) / 2) if have >= want else -((want - have) // 2)

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """A uniform image of `size` (width, height) that is zero after normalisation."""
        return self.pixels.blank(size)


def load_clip_preprocessor(checkpoint_dir: Path, side: int) -> CropPreprocessor:
    """The image processor of a CLIP checkpoint.

    Without transformers' file it is that of OpenCLIP's config, if there is one.

    Args:
        checkpoint_dir: the checkpoint.
        side: height and width of the images that the encoder takes.

    Raises:
        UserError: the file is missing, is not of a CLIP processor, or gives another size.
    """
    open_config = local_checkpoint(checkpoint_dir, "none") / OPEN_CONFIG
    if open_config.is_file() and not has_processor(checkpoint_dir):
        return open_clip_preprocessor(open_config, side)
    config = ProcessorConfig.of(checkpoint_dir, CLIP)
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


def open_clip_preprocessor(path: Path, side: int) -> CropPreprocessor:
    """OpenCLIP's transform for inference, from the `preprocess_cfg` of its config.

    Source: https://github.com/mlfoundations/open_clip, src/open_clip/transform.py.

    Args:
        path: open_clip_config.json.
        side: height and width of the images, which OpenCLIP takes from the model, whatever `size`
            says.

    Raises:
        UserError: there is no `preprocess_cfg`, or a value that OpenCLIP does not know.
    """
    values = read_object(path).get("preprocess_cfg")
    if not isinstance(values, dict):
        fault = "preprocess_cfg, which says how images are scaled, is missing"
        raise ProcessorConfig(path, {}).refusal(fault)
    config = ProcessorConfig(path, values)
    if unknown := sorted(set(values) - OPEN_FIELDS):
        raise config.refusal(f"preprocess_cfg has {', '.join(unknown)}, which OpenCLIP has not")
    config.one_of("mode", ("RGB",))
    mode = config.one_of("resize_mode", MODES)
    fill = config.values.get("fill_color") or 0
    if type(fill) is not int or not 0 <= fill <= 255:
        raise config.refusal(f"fill_color is {fill!r}, and must be a whole number up to 255")
    pixels = PixelSettings(
        FILTERS[config.one_of("interpolation", tuple(FILTERS))],
        1 / 255,
        config.channels("mean", CLIP_MEAN),
        config.divisors("std", CLIP_STD),
    )
    return CropPreprocessor(
        pixels,
        shortest=side if mode == "shortest" else None,
        size=(side, side) if mode == "squash" else None,
        crop=None if mode == "squash" else (side, side),
        longest=side if mode == "longest" else None,
        by_torchvision=True,
        fill=fill,
    )
