"""Ask a vision-language model about images.

torch is imported inside the functions, because the rest of the package does not need it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.evaluate.vlm.model import NEW_TOKENS, VLM, base_of
from jax_unlearn.evaluate.vlm.prompts import Turn, conversation
from jax_unlearn.evaluate.vlm.reasoning import OPEN, opens_reasoning
from jax_unlearn.runtime.errors import UserError

Grid = tuple[int, int, int]  # frames, rows and columns of patches
Patches = np.ndarray  # [t * h * w, channels * temporal_patch * patch * patch]

SMALL_MODEL = 20_000_000  # parameters
# Tokens of a batch: those of the prompts with their images, and those that may be written.
BATCH_TOKENS = 16384


def ask(
    vlm: VLM,
    images: Sequence[Image.Image | ImageFile],
    question: str,
    batch_size: int | None = None,
    max_new_tokens: int = NEW_TOKENS,
    *,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] | None = None,
) -> list[str]:
    """The model's greedy answers to a question about each image, in the order of the images.

    Images whose prompts are equal are asked about together. Where the chat template opens
    reasoning, a reply begins with `<think>`.

    Args:
        vlm: the model.
        images: images, or files, which are read when it is their turn.
        question: the question.
        batch_size: most images of a batch; by default their number is bounded by tokens only.
        max_new_tokens: most tokens of an answer.
        batch_tokens: most tokens of a batch with its answers; a batch has at least one image.
        advance: called with the number of images after each batch.

    Raises:
        UserError: the model's image processor cannot resize an image.
    """
    answers = [""] * len(images)
    waiting: dict[Grid, list[tuple[int, Patches]]] = {}
    opened = OPEN if opens_reasoning(conversation(vlm.tokenizer, [(question, None)])) else ""

    @cache
    def prompt_of(grid: Grid) -> list[int]:
        return prompt_tokens(vlm, question, grid)

    def room(grid: Grid) -> int:
        """The number of images of a batch."""
        most = max(1, batch_tokens // (len(prompt_of(grid)) + max_new_tokens))
        return most if batch_size is None else min(most, batch_size)

    def answer(grid: Grid) -> None:
        batch = waiting.pop(grid)
        with small_model_threads(vlm.model):
            patches = [patches for _, patches in batch]
            texts = generate(vlm, prompt_of(grid), [grid], patches, max_new_tokens)
        for (i, _), text in zip(batch, texts, strict=True):
            answers[i] = opened + text
        if advance is not None:
            advance(len(batch))

    for i, image in enumerate(images):
        patches, grid = preprocess(vlm, image)
        waiting.setdefault(grid, []).append((i, patches))
        if len(waiting[grid]) >= room(grid):
            answer(grid)
        # Of images of many sizes no more wait in memory than those of one batch.
        while sum(len(prompt_of(g)) * len(batch) for g, batch in waiting.items()) > batch_tokens:
            answer(max(waiting, key=lambda g: len(prompt_of(g)) * len(waiting[g])))
    for grid in list(waiting):
        answer(grid)
    return answers


def preprocess(vlm: VLM, image: Image.Image | ImageFile) -> tuple[Patches, Grid]:
    name = image.name if isinstance(image, ImageFile) else "an image"
    if isinstance(image, ImageFile):
        image = read_image(image.source())
    try:
        patches, grid = vlm.preprocessor(image)
    except ValueError as error:
        raise UserError(f"{name}: {error}; leave it out") from error
    t, h, w = (int(n) for n in grid[0])
    return patches, (t, h, w)


def prompt_tokens(vlm: VLM, question: str, grid: Grid) -> list[int]:
    """Token ids of an image and the question, with a placeholder for each merged patch."""
    return conversation_tokens(vlm, [(question, None)], [grid])


def conversation_tokens(vlm: VLM, turns: Sequence[Turn], grids: Sequence[Grid]) -> list[int]:
    """Token ids of a conversation up to the next answer.

    Args:
        vlm: the model.
        turns: the questions with their answers; the last answer is None.
        grids: the grid of the image of each turn.
    """
    config = vlm.writer.config
    block = config.vision_config.spatial_merge_size**2
    merged = iter([int(np.prod(grid)) // block for grid in grids])
    text = conversation(vlm.tokenizer, turns)
    prompt: list[int] = []
    for token in vlm.tokenizer(text, add_special_tokens=False)["input_ids"]:
        prompt.extend([token] * (next(merged) if token == config.image_token_id else 1))
    return prompt


def model_arguments(
    vlm: VLM, ids: Any, mask: Any, patches: Sequence[Patches], grids: Sequence[Grid]
) -> dict[str, Any]:
    """Arguments of the model for some samples, on its device.

    Args:
        vlm: the model.
        ids: token ids, a tensor [n, length].
        mask: which of them are no padding, a tensor [n, length].
        patches: the patches of each sample's images, concatenated.
        grids: the grids of all images, in the same order.
    """
    import torch

    device, writer = vlm.model.device, vlm.writer
    given = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.from_numpy(np.concatenate(patches)),
        "image_grid_thw": torch.tensor([*grids]),
    }
    if "mm_token_type_ids" in inspect.signature(base_of(writer).forward).parameters:
        # 1 for image tokens, whose M-RoPE positions are rows and columns, 0 for text.
        image = (ids == writer.config.image_token_id) & (mask == 1)
        given["mm_token_type_ids"] = image.int()
    return {name: value.to(device) for name, value in given.items()}


def generate(
    vlm: VLM,
    prompt: list[int],
    grids: Sequence[Grid],
    patches: Sequence[Patches],
    max_new_tokens: int,
) -> list[str]:
    """Answers to one prompt about several samples whose images have the same grids.

    Samples therefore need no padding.

    Args:
        vlm: the model.
        prompt: token ids of the prompt.
        grids: the grids of a sample's images.
        patches: the patches of each sample's images, concatenated.
        max_new_tokens: most tokens of an answer.
    """
    import torch

    n, writer = len(patches), vlm.writer
    ids = torch.tensor([prompt]).expand(n, -1).contiguous()
    given = model_arguments(vlm, ids, torch.ones_like(ids), patches, [*grids] * n)
    if writer.generation_config.eos_token_id is None:
        # That of a whole Qwen3-Omni belongs to the whole; without an end it would write on.
        given["eos_token_id"] = vlm.tokenizer.eos_token_id
    with torch.inference_mode():
        output = writer.generate(
            **given,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=_pad_token(vlm.tokenizer),
        )
    texts = vlm.tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@contextmanager
def small_model_threads(model: Any) -> Iterator[None]:
    """Limit torch to one thread for a small model, whose operations are too short to parallelise.

    On a busy machine the bundled model took 14 times as long with several threads, which waited for
    each other.
    """
    import torch

    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pad_token(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
