"""Encode texts and images with CLIP and the checkpoint's tokenizer and image processor."""

from collections.abc import Callable, Hashable, Iterator, Sequence
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
from jax_unlearn.models.clip.encoders import ClipTextConfig
from jax_unlearn.models.clip.model import LINEARS, Clip, ClipConfig, ClipFeatures
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.no_torch import import_transformers
from jax_unlearn.runtime.progress import progress_bar

TEXT, IMAGE = LINEARS
BATCH = 64
# Texts are padded to 8, 12, 16, … tokens, so that few programs are compiled.
FEWEST, STEP = 8, 4
# Two texts with different tokens in any tokenizer.
PROBES = ("cat", "dog")
COPY = (
    "copy tokenizer.json, or vocab.json and merges.txt, and tokenizer_config.json from the model's "
    "original directory"
)

Rows = Float[np.ndarray, "n _"]


def load_tokenizer(checkpoint: Path, text: ClipTextConfig) -> Any:
    """A checkpoint's tokenizer.

    Without its files transformers may build one with an empty vocabulary, which gives every name
    the same tokens; that is refused too.

    Args:
        checkpoint: the checkpoint.
        text: settings of its text encoder.

    Raises:
        UserError: its files are missing or cannot be read, or are of another model.
    """
    auto = import_transformers().AutoTokenizer
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        found = auto.from_pretrained(local_checkpoint(checkpoint, "none"), **options)
    except (KeyError, OSError, TypeError, ValueError) as error:
        why = f"cannot be read ({' '.join(str(error).split())})"
        raise UserError(f"{checkpoint}: its tokenizer {why}; {COPY}") from error
    if fault := tokenizer_fault(found, text):
        raise UserError(f"{checkpoint}: its tokenizer {fault}; {COPY}")
    return found


def tokenizer_fault(tokenizer: Any, text: ClipTextConfig) -> str | None:
    """Why a tokenizer cannot be that of a text encoder; None if it can."""
    one, other = tokenizer(list(PROBES), verbose=False)["input_ids"]
    ids = [*one, *other]
    if one == other or not one:
        return "has no vocabulary: every name would be the same to the model"
    if max(ids) >= text.vocab_size:
        return f"has an id {max(ids)}, and the model {text.vocab_size} tokens"
    if tokenizer.pad_token_id is None:
        return "has no token to pad with"
    if text.highest_ends and max(one) != one[-1]:
        return "does not end a text with its highest id, where the model reads its features"
    if not text.highest_ends and text.eos_token_id not in one:
        return (
            f"does not end a text with id {text.eos_token_id}, where the model reads its features"
        )
    return None


class ClipEncoder:
    """A CLIP model with its tokenizer and image processor; runs batches of a few shapes.

    All three are loaded at first use: a run on names needs no image processor, a run on images
    without names no tokenizer, and names are checked before the weights are loaded.

    Args:
        config: the model's shape.
        load: loads the model.
        checkpoint: the checkpoint, with its tokenizer and image processor.
        console: where the progress bar is drawn.
    """

    def __init__(
        self, config: ClipConfig, load: Callable[[], Clip], checkpoint: Path, console: Console
    ) -> None:
        self.config, self._load, self.console = config, load, console
        self.checkpoint = local_checkpoint(checkpoint, "none")

    @cached_property
    def clip(self) -> Clip:
        """The model; raises as `load`."""
        return self._load()

    def has(self, projection: str) -> bool:
        """Whether the model has this projection and its encoder."""
        return projection in self.config.linears

    def check_reads(self, names: bool, images: bool) -> None:
        """Load what a run needs to read names and images, before any work is done.

        Raises:
            UserError: a file is missing or of another model; names it.
        """
        for name, needed in (("tokenizer", names), ("processor", images)):
            if needed:
                getattr(self, name)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer; raises as `load_tokenizer`."""
        return load_tokenizer(self.checkpoint, self.config.text_side())

    def key(self, name: str) -> Hashable:
        """A name's tokens: equal for names that are the same to the model."""
        return tuple(self.tokenizer(name, verbose=False)["input_ids"])

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text.

        Raises:
            UserError: a text is longer than the context.
        """
        context = self.config.text_side().max_position_embeddings
        found = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        for text, length in zip(texts, found, strict=True):
            if length > context:
                raise UserError(
                    f"{text!r} has {length} tokens, and the model takes {context}; shorten it"
                )
        return found

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, attention_mask), both [n, places]: padded to 8, 12, 16, … tokens.

        The features do not depend on the number of places: attention is causal, and the
        end-of-text token is before the padding.

        Raises:
            UserError: a text is longer than the context.
        """
        text, longest = self.config.text_side(), max(self.lengths(texts))
        places = min(text.max_position_embeddings, max(FEWEST, -(-longest // STEP) * STEP))
        if self.tokenizer.padding_side != "right" or (
            text.highest_ends and self.tokenizer.pad_token_id > self.tokenizer.eos_token_id
        ):
            # The features then depend on the places, and are defined for the whole context only.
            places = text.max_position_embeddings
        # None is longer than `places`, so that all have this many.
        out = self.tokenizer(
            list(texts), padding=True, pad_to_multiple_of=places, return_tensors="np"
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
        order = np.argsort(self.lengths(texts), kind="stable")
        # Texts of like length share a batch, which is padded to the longest.
        rows = np.empty((len(texts), self.config.text_side().hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids, mask = self.tokens([texts[i] for i in chosen])
            taps = self.clip.encode_text(padded(ids), padded(mask)).taps[TEXT]
            rows[chosen] = np.asarray(taps, np.float32)[: len(chosen)]
        return rows

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
        side = self.config.vision_side().image_size
        return self.processor.blank((side, side))

    @cached_property
    def processor(self) -> CropPreprocessor:
        """The checkpoint's image processor, loaded at first use.

        Raises:
            UserError: it is missing, or belongs to another model.
        """
        return load_clip_preprocessor(self.checkpoint, self.config.vision_side().image_size)


def padded(x: np.ndarray) -> np.ndarray:
    """A batch padded to BATCH with copies of its first row, so that all batches have one shape."""
    return np.concatenate([x, np.repeat(x[:1], BATCH - len(x), axis=0)])


def concatenated(batches: Sequence[Any], count: int) -> Rows:
    """Concatenate padded batches and drop the padding of the last: the first `count` rows."""
    return np.concatenate([np.asarray(x, np.float32) for x in batches])[:count]
