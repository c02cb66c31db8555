"""What a checkpoint's vision side makes of images: the outputs that an edit changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

import porting
from jax_unlearn.data.clip_preprocess import load_clip_preprocessor
from jax_unlearn.data.images import UNREADABLE, read_image, reason
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runtime.errors import UserError

Outputs = dict[str, Float[np.ndarray, "n e"]]
# Texts of random tokens, for CLIP's text side.
TEXTS = 8


@dataclass(frozen=True)
class Change:
    """How far a projector's outputs moved: relative to their norm, and the rows' mean cosine."""

    relative: float
    cosine: float


def change(before: np.ndarray, after: np.ndarray) -> Change:
    before, after = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    # A row of zeros has no direction; it counts as unmoved if it stays one.
    cosine = np.where(norms > 0, (before * after).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    moved = np.linalg.norm(after - before) / max(np.linalg.norm(before), np.finfo(float).tiny)
    return Change(float(moved), float(cosine.mean()))


class QwenVision:
    """A Qwen3 tower: the outputs of the Merger and the DeepStack mergers."""

    def __init__(self, checkpoint: Path) -> None:
        self.tower = porting.load_vision_tower(checkpoint)
        self.checkpoint = checkpoint
        self.linears = self.tower.config.linears

    def outputs(
        self,
        images: Sequence[Image.Image],
        adapter: LoraAdapter | None = None,
        processor: Path | None = None,
    ) -> Outputs:
        """Outputs for all images, by the Merger's name.

        Args:
            images: RGB images.
            adapter: changes of the Mergers.
            processor: checkpoint whose image processor is used; by default its own.
        """
        pixels = ExtractionSettings().max_pixels
        preprocess = load_preprocessor(processor or self.checkpoint, self.tower.config, pixels)
        found: dict[str, list[np.ndarray]] = {}
        for image in images:
            out = self.tower(*preprocess(image), adapter=adapter)
            for name, rows in out.outputs.items():
                found.setdefault(name, []).append(np.asarray(rows, np.float32))
        return {name: np.concatenate(rows) for name, rows in found.items()}


class ClipVision:
    """CLIP or one of its encoders: the embeddings of images, and of texts of random tokens."""

    def __init__(self, checkpoint: Path) -> None:
        self.clip, self.checkpoint = porting.load_clip(checkpoint), checkpoint
        self.linears = self.clip.config.linears

    def outputs(
        self,
        images: Sequence[Image.Image],
        adapter: LoraAdapter | None = None,
        processor: Path | None = None,
    ) -> Outputs:
        """Embeddings by the projection's name; arguments as of `QwenVision.outputs`."""
        text, vision = self.clip.config.text, self.clip.config.vision
        found = {}
        if vision is not None:
            preprocess = load_clip_preprocessor(processor or self.checkpoint, vision.image_size)
            pixels = np.stack([preprocess(image) for image in images])
            found["visual_projection"] = self.clip.encode_image(pixels, adapter).embeds
        if text is not None:
            shape = (TEXTS, text.max_position_embeddings)
            ids = np.random.default_rng(0).integers(0, text.vocab_size, shape)
            ids[:, -1] = text.vocab_size - 1 if text.highest_ends else text.eos_token_id
            found["text_projection"] = self.clip.encode_text(ids, None, adapter).embeds
        return {name: np.asarray(embeds) for name, embeds in found.items()}


def open_vision(checkpoint: Path) -> QwenVision | ClipVision:
    """The vision side of a checkpoint.

    Raises:
        UserError: it is not a checkpoint of a supported family.
    """
    return ClipVision(checkpoint) if porting.is_clip(checkpoint) else QwenVision(checkpoint)


def read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read image files as RGB.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if not paths:
        raise UserError("compare: give one image or more after BASE and RESULT")
    images = []
    for path in paths:
        try:
            images.append(read_image(path))
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    return images
