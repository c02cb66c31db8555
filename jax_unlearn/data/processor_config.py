"""Read and check the settings of a checkpoint's image processor."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.text_files import read_json

# transformers 5 nests the image processor in the first file, which it prefers if both exist.
PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
CHANNELS = 3
# Normalisation of OpenAI's CLIP, the default of transformers' processors.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PixelSettings:
    """Resampling, scaling and normalisation of every image.

    resample: number of Pillow's filter, or None without resizing. scale: factor of pixel values 0
    to 255, or None. mean, std: normalisation per channel, after scaling, or None.
    """

    resample: int | None
    scale: float | None
    mean: Float[np.ndarray, " c"] | None
    std: Float[np.ndarray, " c"] | None

    def normalised(self, image: Image.Image) -> Float[np.ndarray, "c h w"]:
        """The pixels of an RGB image, float32, scaled and normalised."""
        pixels = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
        # The product is in float64 and then cast to float32, as in transformers.
        scaled = pixels * self.scale if self.scale is not None else pixels
        found = scaled.astype(np.float32)
        if self.mean is not None and self.std is not None:
            found = (found - self.mean[:, None, None]) / self.std[:, None, None]
        return np.ascontiguousarray(found)

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """A uniform image of `size` (width, height) that is zero after normalisation."""
        mean = np.zeros(CHANNELS) if self.mean is None else self.mean.astype(np.float64)
        # The factor is 1 / levels, and may be rounded in the file.
        levels = 255 if self.scale is None else round(1 / self.scale, 6)
        return Image.new("RGB", size, tuple(round(float(m) * levels) for m in mean))


class ProcessorConfig:
    """The settings of an image processor, with the file that they are from."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    @classmethod
    def of(cls, checkpoint: Path, kinds: tuple[str, ...]) -> "ProcessorConfig":
        """The settings in a checkpoint's JSON.

        Args:
            checkpoint: the checkpoint.
            kinds: beginnings of the class names of supported processors.

        Raises:
            UserError: the file is missing, is not JSON, or is of another processor; names the file.
        """
        config = cls(*read_values(checkpoint))
        names = ("image_processor_type", "feature_extractor_type")
        kind = config.values.get(names[0], config.values.get(names[1]))
        if kind is not None and not str(kind).startswith(kinds):
            raise config.refusal(f"is of {kind!r}, and {' or '.join(kinds)} is read here")
        return config

    def refusal(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; use the file of the model's original directory")

    def flag(self, name: str) -> bool:
        """A boolean setting, true by default."""
        value = self.values.get(name)
        return True if value is None else bool(value)

    def whole(self, name: str, default: int | None = None) -> int:
        """A setting that must be a positive integer."""
        return self.positive(name, self.values.get(name, default))

    def positive(self, name: str, value: Any) -> int:
        """Check that a value is a positive integer.

        Raises:
            UserError: it is not.
        """
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(f"{name} is {value!r}, and must be a positive whole number")
        return value

    def pixels(self) -> PixelSettings:
        """The resampling, scaling and normalisation of images.

        Raises:
            UserError: a setting has an invalid value.
        """
        normalise = self.flag("do_normalize")
        return PixelSettings(
            self._resample() if self.flag("do_resize") else None,
            self._number("rescale_factor", 1 / 255) if self.flag("do_rescale") else None,
            self.channels("image_mean", CLIP_MEAN) if normalise else None,
            self.divisors("image_std", CLIP_STD) if normalise else None,
        )

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        """A setting that is one of these words, the first by default.

        Raises:
            UserError: it is not.
        """
        value = self.values.get(name)
        value = known[0] if value is None else value
        if value not in known:
            raise self.refusal(f"{name} is {value!r}, and must be {' or '.join(known)}")
        return str(value)

    def divisors(self, name: str, default: tuple[float, ...]) -> Float[np.ndarray, " c"]:
        """`channels`, none of them zero."""
        found = self.channels(name, default)
        if not np.all(found):
            raise self.refusal(f"{name} is zero, and pixels are divided by it")
        return found

    def _resample(self) -> int:
        value = self.values.get("resample")
        value = Image.Resampling.BICUBIC if value is None else value
        if value not in list(Image.Resampling):
            raise self.refusal(f"resample is {value!r}, and must be a filter of Pillow's, 0 to 5")
        return int(value)

    def _number(self, name: str, default: float) -> float:
        value = self.values.get(name)
        return default if value is None else self._finite(name, value)

    def _finite(self, name: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise self.refusal(f"{name} is {value!r}, and must be a number")
        return float(value)

    def channels(self, name: str, default: tuple[float, ...]) -> Float[np.ndarray, " c"]:
        """One number per channel; a single number is used for all channels."""
        value = self.values.get(name)
        value = list(default) if value is None else value
        value = value if isinstance(value, list) else [value] * CHANNELS
        if len(value) != CHANNELS:
            raise self.refusal(f"{name} has {len(value)} numbers for {CHANNELS} channels")
        return np.array([self._finite(name, one) for one in value], np.float32)


def processor_file(checkpoint: Path) -> Path:
    """The file with the image processor's settings.

    Raises:
        UserError: the checkpoint has none.
    """
    directory = local_checkpoint(checkpoint, "none")
    nested, own = directory / PROCESSOR, directory / IMAGE_PROCESSOR
    if nested.is_file() and "image_processor" in read_object(nested):
        return nested
    if not own.is_file():
        raise UserError(f"{own}: no such file; copy it from the model's original directory")
    return own


def has_processor(checkpoint: Path) -> bool:
    """Whether a checkpoint has a file of transformers with the image processor's settings."""
    directory = local_checkpoint(checkpoint, "none")
    nested = directory / PROCESSOR
    in_nested = nested.is_file() and "image_processor" in read_object(nested)
    return in_nested or (directory / IMAGE_PROCESSOR).is_file()


def read_values(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """(file, settings of the image processor) of a checkpoint."""
    path = processor_file(checkpoint)
    values: Any = read_object(path)
    if path.name == PROCESSOR:
        values = values["image_processor"]
    if not isinstance(values, dict):
        raise UserError(f"{path}: the image processor's settings are no JSON object")
    return path, values


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: the file cannot be read, or does not contain an object.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object")
    return found
