"""Preprocess images with the checkpoint's image processor (PIL backend, without torch)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runtime.errors import UserError


@dataclass(frozen=True)
class Preprocessor:
    """The image processor named in the checkpoint's preprocessor_config.json."""

    processor: Any

    def __call__(
        self, image: Image.Image
    ) -> tuple[Float[np.ndarray, "patches patch"], Int[np.ndarray, "1 3"]]:
        """(pixel_values, grid_thw) of one image.

        Raises:
            ValueError: the image is more than 200 times longer than wide.
        """
        out = self.processor(images=[image], return_tensors="np")
        return np.asarray(out["pixel_values"], np.float32), np.asarray(out["image_grid_thw"])

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch: channels × frames × height × width."""
        processor = self.processor
        return 3 * int(processor.temporal_patch_size) * int(processor.patch_size) ** 2

    def patches(self, size: tuple[int, int]) -> int:
        """The number of patches of an image of `size` (width, height).

        Raises:
            ValueError: the image is more than 200 times longer than wide.
        """
        width, height = size
        return int(self.processor.get_number_of_image_patches(height, width))

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """A uniform image of `size` (width, height) that is zero after normalisation."""
        mean = tuple(round(255 * m) for m in self.processor.image_mean)
        return Image.new("RGB", size, mean)


def load_preprocessor(checkpoint_dir: Path, tower: VisionConfig, max_pixels: int) -> Preprocessor:
    """Load the image processor from preprocessor_config.json.

    Args:
        tower: the tower whose patch sizes the processor must have.
        max_pixels: images are scaled down to at most this area; the cost of attention grows with
            its square.

    Raises:
        UserError: the file is missing, is not an image processor's, belongs to another tower, or
            `max_pixels` is below its smallest image.
    """
    path = checkpoint_dir / "preprocessor_config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; copy it from the model's original directory")

    # Imported here because transformers imports torch if it is installed (see `no_torch`).
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            checkpoint_dir, backend="pil", local_files_only=True, trust_remote_code=False
        )
        found = [getattr(processor, name) for name in ("patch_size", "merge_size")]
        found.append(processor.temporal_patch_size)
        smallest, largest = processor.size.shortest_edge, processor.size.longest_edge
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not an image processor for this tower ({error})") from error
    wanted = [tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size]
    if found != wanted:
        raise UserError(
            f"{path}: patch, merge and temporal patch size are {found}, but config.json's tower "
            f"has {wanted}"
        )
    if max_pixels < smallest:
        raise UserError(f"--max-pixels {max_pixels}: {path} needs at least {smallest}")
    processor.size = {
        "shortest_edge": smallest,
        "longest_edge": min(largest, max_pixels),
    }
    return Preprocessor(processor)
