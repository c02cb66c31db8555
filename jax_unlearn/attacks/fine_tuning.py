"""Fine-tune parts of the edited model on labelled images, and ask it again after some steps.

torch is imported inside the functions, because the rest of the package does not need it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jax_unlearn.attacks.registry import Row
from jax_unlearn.attacks.summary import advantage
from jax_unlearn.evaluate.vlm.asking import (
    model_arguments,
    preprocess,
    prompt_tokens,
    small_model_threads,
)
from jax_unlearn.evaluate.vlm.model import VLM, quiet_peft

# Marks tokens that the loss leaves out.
IGNORED = -100
# Examples of a step: half of the concept, half of the class it is moved onto and of others.
BATCH = 16
# Smallest rise of TPR − FPR that counts, how often in a row it may fail to come, and the number of
# steps before which that does not count: after few steps every image is named alike.
LEAST_RISE, PATIENCE, LEAST_STEPS = 0.02, 2, 100
# Numbers of steps after which the model is asked, up to the budget's largest.
STEPS = (10, 30, 60, 100, 200, 400, 800)
RANK = 8


@dataclass(frozen=True)
class Example:
    """An image, a question about it, and the answer to learn."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class Encoded:
    """An example as the model reads it: token ids, the index of the answer, patches and grid."""

    ids: list[int]
    start: int
    patches: np.ndarray
    grid: tuple[int, int, int]


def encode(vlm: VLM, example: Example) -> Encoded:
    patches, grid = preprocess(vlm, example.image)
    prompt = prompt_tokens(vlm, example.question, grid)
    tokenizer = vlm.tokenizer
    answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    return Encoded([*prompt, *answer, tokenizer.eos_token_id], len(prompt), patches, grid)


def inputs(vlm: VLM, batch: Sequence[Encoded]) -> tuple[dict[str, Any], Any]:
    """(arguments of the model, labels) for examples of any size, padded on the right."""
    import torch

    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, one in enumerate(batch):
        known = torch.tensor(one.ids)
        ids[row, : len(known)] = known
        mask[row, : len(known)] = 1
        labels[row, one.start : len(known)] = known[one.start :]
    patches, grids = [one.patches for one in batch], [one.grid for one in batch]
    return model_arguments(vlm, ids, mask, patches, grids), labels.to(vlm.model.device)


def log_likelihoods(vlm: VLM, batch: Sequence[Encoded]) -> Any:
    """Mean log-likelihood of each example's answer per token, a tensor [n]."""
    import torch

    arguments, labels = inputs(vlm, batch)
    logits = vlm.writer(**arguments).logits[:, :-1].float()
    labels = labels[:, 1:]
    known = labels != IGNORED
    chosen = torch.gather(logits.log_softmax(-1), 2, labels.clamp(min=0)[..., None])[..., 0]
    return (chosen * known).sum(1) / known.sum(1)


@contextmanager
def lora(vlm: VLM, linears: Sequence[str], seed: int) -> Iterator[tuple[VLM, list[Any]]]:
    """(model with a new LoRA, its parameters), without it when the block ends.

    Args:
        vlm: the model.
        linears: full names of the Linears.
        seed: seed of the LoRA's initial weights.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(linears))
    with quiet_peft():
        model = peft.get_peft_model(vlm.model, config)
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        yield VLM(model, vlm.tokenizer, vlm.preprocessor), parameters
    finally:
        model.unload()
        vlm.model.requires_grad_(False)


def linears_in(vlm: VLM, part: str) -> list[str]:
    """Full names of the Linears in a module, such as `language_model`."""
    import torch

    return [
        name
        for name, module in vlm.model.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{part}." in f".{name}."
    ]


def train(
    vlm: VLM,
    parameters: Sequence[Any],
    batches: Iterator[list[Encoded]],
    learning_rate: float,
    steps: int,
) -> Iterator[int]:
    """Adam steps on the answers' likelihood; yields the number of steps after each of STEPS."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        with small_model_threads(vlm.model):
            loss = -log_likelihoods(vlm, next(batches)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        if step in STEPS:
            yield step


def until_no_rise(asked: Callable[[], Row], steps: Iterator[int]) -> list[Row]:
    """Ask before the first and after some steps, until TPR − FPR has stopped rising.

    Returns:
        A row for each number of steps; `best` marks the first with the largest TPR − FPR, and
        `still_rising` a last one that is the best because the budget has ended.
    """
    rows = [{"steps": 0, **asked()}]
    best = advantage(rows[0])
    since = 0
    for step in steps:
        rows.append({"steps": step, **asked()})
        if advantage(rows[-1]) > best + LEAST_RISE:
            best, since = advantage(rows[-1]), 0
        elif step > LEAST_STEPS:
            since += 1
        if since >= PATIENCE:
            break
    highest = max(map(advantage, rows))
    first = next(i for i, row in enumerate(rows) if advantage(row) == highest)
    rising = 0 < first == len(rows) - 1
    return [
        {**row, "best": i == first, "still_rising": rising and i == first}
        for i, row in enumerate(rows)
    ]


def mixed_batches(
    concept: Sequence[Encoded], keep: Sequence[Encoded], seed: int
) -> Iterator[list[Encoded]]:
    """Endless batches, half of the concept's examples and half of those to keep.

    Args:
        concept: may be empty; batches are then of those to keep.
        keep: likewise.
        seed: seed of the order.
    """
    random = np.random.default_rng(seed)
    sides = [side for side in (concept, keep) if side]
    each = BATCH // len(sides)

    def endless(side: Sequence[Encoded]) -> Iterator[Encoded]:
        while True:
            yield from (side[i] for i in random.permutation(len(side)))

    streams = [(endless(side), min(each, len(side))) for side in sides]
    while True:
        yield [next(stream) for stream, count in streams for _ in range(count)]
