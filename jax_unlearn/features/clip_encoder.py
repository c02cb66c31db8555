"""Encode texts and images with CLIP and the checkpoint's tokenizer and image processor."""

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

from jax_unlearn.data.clip_preprocess import CropPreprocessor, load_clip_preprocessor
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.samples import SampleFeatures, TapRows
from jax_unlearn.models.clip.model import LINEARS, Clip, ClipFeatures
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.progress import progress_bar

TEXT, IMAGE = LINEARS
BATCH = 64

Rows = Float[np.ndarray, "n _"]


def load_tokenizer(checkpoint: Path) -> Any:
    """A checkpoint's tokenizer.

    Raises:
        UserError: its files are missing or cannot be read.
    """
    # Imported here because transformers imports torch if it is installed (see `no_torch`).
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(local_checkpoint(checkpoint, "none"), **options)
    except (KeyError, OSError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint}: its tokenizer cannot be read ({text}); copy its files from the "
            "model's original directory"
        ) from error


class ClipEncoder:
    """A CLIP model with its tokenizer and image processor; runs batches of one shape.

    Args:
        clip: the model.
        checkpoint: the checkpoint, with its tokenizer and image processor.
        console: where the progress bar is drawn.

    Raises:
        UserError: the tokenizer is missing.
    """

    def __init__(self, clip: Clip, checkpoint: Path, console: Console) -> None:
        self.clip, self.console = clip, console
        self.checkpoint = local_checkpoint(checkpoint, "none")
        self.tokenizer = load_tokenizer(checkpoint)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, attention_mask), both [n, context], padded to the context length.

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
        """One of the two projections, as a FrozenLinear."""
        weight, bias = self.clip.linear(name)
        return FrozenLinear(name, np.ascontiguousarray(weight), bias)

    def contents(self) -> Iterator[np.ndarray]:
        """All weights of the model."""
        yield from map(np.asarray, jax.tree.leaves(nnx.state(self.clip)))

    def texts(self, prompts: Sequence[Prompt]) -> SampleFeatures:
        """Rows at `text_projection`, one per prompt."""
        taps = self.text_taps([prompt.text for prompt in prompts])
        return SampleFeatures(tuple(prompts), {TEXT: TapRows(taps, np.arange(len(taps)))})

    def text_taps(self, texts: Sequence[str]) -> Rows:
        """Inputs of `text_projection`, [n, d]."""
        ids, mask = self.tokens(texts)
        rows = [
            self.clip.encode_text(padded(ids[i : i + BATCH]), padded(mask[i : i + BATCH]))
            for i in range(0, len(ids), BATCH)
        ]
        return concatenated([out.taps[TEXT] for out in rows], len(texts))

    def images(
        self, files: Sequence[ImageFile], reader: ImageReader, description: str
    ) -> SampleFeatures:
        """Rows at `visual_projection`, one for each image that can be read.

        Raises:
            UserError: no file can be read; or one cannot and the reader is strict.
        """
        kept: list[ImageFile] = []
        rows: list[Any] = []
        with progress_bar(self.console) as bar:
            read = reader.read(bar.track(files, description=description))
            while batch := list(islice(read, BATCH)):
                kept += [files[index] for index, _ in batch]
                rows.append(self.image_batch([image for _, image in batch]).taps[IMAGE])
        if not rows:
            raise UserError(f"{files[0].path.parent}: none of its {len(files)} images can be read")
        taps = concatenated(rows, len(kept))
        return SampleFeatures(tuple(kept), {IMAGE: TapRows(taps, np.arange(len(taps)))})

    def image_batch(self, images: Sequence[Image.Image]) -> ClipFeatures:
        """Encode at most BATCH images, padded to BATCH."""
        return self.clip.encode_image(padded(np.stack([self.processor(one) for one in images])))

    def blank(self) -> Image.Image:
        """A uniform image that is zero after normalisation."""
        side = self.clip.config.vision.image_size
        return self.processor.blank((side, side))

    @cached_property
    def processor(self) -> CropPreprocessor:
        """The checkpoint's image processor, loaded at first use.

        Raises:
            UserError: it is missing, or belongs to another model.
        """
        return load_clip_preprocessor(self.checkpoint, self.clip.config.vision.image_size)


def padded(x: np.ndarray) -> np.ndarray:
    """A batch padded to BATCH with copies of its first row, so that all batches have one shape."""
    return np.concatenate([x, np.repeat(x[:1], BATCH - len(x), axis=0)])


def concatenated(batches: Sequence[Any], count: int) -> Rows:
    """Concatenate padded batches and drop the padding of the last: the first `count` rows."""
    return np.concatenate([np.asarray(x, np.float32) for x in batches])[:count]
