"""Images through the checkpoint's own image processor (PIL backend: no torch)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jax_unlearn.errors import UserError


@dataclass(frozen=True)
class Preprocessor:
    """The processor that the checkpoint's preprocessor_config.json names."""

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

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """An image of `size` (width, height) that is zero after normalisation: nothing to see."""
        mean = tuple(round(255 * m) for m in self.processor.image_mean)
        return Image.new("RGB", size, mean)


def load_preprocessor(checkpoint_dir: Path, patch_size: int, merge: int) -> Preprocessor:
    """Read preprocessor_config.json.

    Raises:
        UserError: the file is missing, or belongs to another tower (patch or merge size).
    """
    path = checkpoint_dir / "preprocessor_config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; copy it from the model's original directory")

    # Not at the top: transformers imports torch where it is installed, and we must not.
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            checkpoint_dir, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    if (processor.patch_size, processor.merge_size) != (patch_size, merge):
        raise UserError(
            f"{path}: patch_size {processor.patch_size} and merge_size {processor.merge_size}, but "
            f"config.json's tower has {patch_size} and {merge}"
        )
    return Preprocessor(processor)
