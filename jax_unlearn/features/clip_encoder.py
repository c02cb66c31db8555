"""Texts and images through CLIP: a checkpoint's tokenizer and image processor, then the model."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import track

from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.preprocess import CropPreprocessor, load_clip_preprocessor
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.samples import SampleFeatures, TapRows
from jax_unlearn.models.clip.model import LINEARS, Clip, ClipFeatures
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runtime.errors import UserError

TEXT, IMAGE = LINEARS
BATCH = 64

Rows = Float[np.ndarray, "n _"]


class ClipEncoder:
    """A CLIP model that reads strings and image files, in batches of one shape.

    Args:
        checkpoint: directory of its tokenizer and image processor.

    Raises:
        UserError: the tokenizer is missing.
    """

    def __init__(self, clip: Clip, checkpoint: Path, console: Console) -> None:
        self.clip, self.checkpoint, self.console = clip, checkpoint, console
        # Not at the top: transformers imports torch where it is installed, and we must not.
        from transformers import AutoTokenizer

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        except (KeyError, OSError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise UserError(
                f"{checkpoint}: its tokenizer cannot be read ({text}); copy its files from the "
                "model's original directory"
            ) from error

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, attention_mask) [n, context], padded to the context's whole length.

        Raises:
            UserError: a text is longer than the context.
        """
        context = self.clip.config.text.max_position_embeddings
        for text, ids in zip(
            texts, self.tokenizer(list(texts), verbose=False)["input_ids"], strict=True
        ):
            if len(ids) > context:
                raise UserError(
                    f"{text!r} has {len(ids)} tokens, and the model takes {context}; shorten it"
                )
        out = self.tokenizer(
            list(texts), padding="max_length", max_length=context, return_tensors="np"
        )
        return out["input_ids"], out["attention_mask"]

    def projection(self, name: str) -> FrozenLinear:
        """One of the two, frozen."""
        weight, bias = self.clip.linear(name)
        return FrozenLinear(name, np.ascontiguousarray(weight), bias)

    def contents(self) -> Iterator[np.ndarray]:
        """All weights."""
        yield from map(np.asarray, jax.tree.leaves(nnx.state(self.clip)))

    def texts(self, prompts: Sequence[Prompt]) -> SampleFeatures:
        """Rows at `text_projection`, one a prompt."""
        taps = self.text_taps([prompt.text for prompt in prompts])
        return SampleFeatures(tuple(prompts), {TEXT: TapRows(taps, np.arange(len(taps)))})

    def text_taps(self, texts: Sequence[str]) -> Rows:
        """Inputs of `text_projection`."""
        ids, mask = self.tokens(texts)
        rows = [
            self.clip.encode_text(padded(ids[i : i + BATCH]), padded(mask[i : i + BATCH]))
            for i in range(0, len(ids), BATCH)
        ]
        return joined([out.taps[TEXT] for out in rows], len(texts))

    def images(
        self, files: Sequence[ImageFile], reader: ImageReader, description: str
    ) -> SampleFeatures:
        """Rows at `visual_projection`, one an image that can be read.

        Raises:
            UserError: no file could be read; or one could not and the reader is strict.
        """
        quiet = not self.console.is_terminal
        listed = track(
            files, description=description, console=self.console, transient=True, disable=quiet
        )
        kept: list[ImageFile] = []
        rows: list[Any] = []
        read = reader.read(listed)
        while batch := list(islice(read, BATCH)):
            kept += [files[index] for index, _ in batch]
            rows.append(self.image_batch([image for _, image in batch]).taps[IMAGE])
        if not rows:
            raise UserError(f"{files[0].path.parent}: none of its {len(files)} images can be read")
        taps = joined(rows, len(kept))
        return SampleFeatures(tuple(kept), {IMAGE: TapRows(taps, np.arange(len(taps)))})

    def image_batch(self, images: Sequence[Image.Image]) -> ClipFeatures:
        """The image side on at most BATCH images, padded to as many."""
        return self.clip.encode_image(padded(np.stack([self.processor(one) for one in images])))

    def blank(self) -> Image.Image:
        """An image that is zero after normalisation: nothing to see."""
        side = self.clip.config.vision.image_size
        return self.processor.blank((side, side))

    @cached_property
    def processor(self) -> CropPreprocessor:
        """The checkpoint's image processor, read when the first image is.

        Raises:
            UserError: it is missing, or is another tower's.
        """
        return load_clip_preprocessor(self.checkpoint, self.clip.config.vision.image_size)


def padded(x: np.ndarray) -> np.ndarray:
    """The batch filled up with its first row, so that all batches compile once."""
    return np.concatenate([x, np.repeat(x[:1], BATCH - len(x), axis=0)])


def joined(batches: Sequence[Any], count: int) -> Rows:
    """Full batches one after another; only the last was filled up."""
    return np.concatenate([np.asarray(x, np.float32) for x in batches])[:count]
