"""Attack: train input embeddings before the question that make the model name the concept.

All weights stay as they are. The vectors take the place of copies of a token that occurs in neither
questions nor answers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from jax_unlearn.attacks.edited_model import rates
from jax_unlearn.attacks.fine_tuning import encode, mixed_batches, train, until_no_rise
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.relearning import PERMUTED, STEPS, numbers, training_examples
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import VLM
from jax_unlearn.runtime.errors import UserError

VECTORS = 10
LEARNING_RATE = 1e-2
CONTROLS = {
    PERMUTED: "the same images with their answers exchanged at random: no relation to learn"
}
# Of a large vocabulary not more are tried as placeholders.
MOST_TRIED = 5000


def trials(run: AttackedRun) -> Iterator[Trial]:
    for seed in run.seeds:
        # Of the numbers of relearning the largest that is there.
        for count in numbers(run)[0][-1:]:
            for subject in (EDITED, *CONTROLS):
                measure = partial(prompted, run, count, subject, seed)
                yield Trial(subject, {"images": count, "vectors": VECTORS}, seed, measure)


def prompted(run: AttackedRun, count: int, subject: str, seed: int) -> list[Row]:
    """Rates after each number of steps of training."""
    vlm, test = run.model.vlm, run.split(seed)[1]
    concept, keep = training_examples(run, count, subject, seed)
    token, text = placeholder(vlm, [one.question + " " + one.answer for one in (*concept, *keep)])

    def asked() -> Row:
        return dict(rates(vlm, run.naming, test, answers=answers))

    def answers(vlm: VLM, images: Sequence[Image.Image], question: str) -> list[str]:
        return ask(vlm, images, text + question)

    own, theirs = (
        [encode(vlm, replace(one, question=text + one.question)) for one in side]
        for side in (concept, keep)
    )
    batches = mixed_batches(own, theirs, seed)
    with soft_prompt(vlm, token, seed) as vectors:
        steps = train(vlm, [vectors], batches, LEARNING_RATE, STEPS[run.budget])
        return until_no_rise(asked, steps)


def placeholder(vlm: VLM, texts: list[str]) -> tuple[int, str]:
    """(id, text): a token that is in none of the texts, and VECTORS copies of it as text.

    Raises:
        UserError: the tokenizer has none whose copies are tokens of their own.
    """
    tokenizer, config = vlm.tokenizer, vlm.writer.config
    taken = {id for text in texts for id in tokenizer(text)["input_ids"]}
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    taken |= {*template, config.image_token_id, config.video_token_id}
    taken |= {tokenizer.eos_token_id, tokenizer.pad_token_id}
    added = tokenizer.get_added_vocab()
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[0] not in added, item[1]))
    for word, token in words[:MOST_TRIED]:
        # Added tokens need no spaces between them, and words do.
        for text in (word * VECTORS, f"{word} " * VECTORS):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if token not in taken and ids == [token] * VECTORS:
                return token, text
    raise UserError(
        f"soft_prompt: none of the first {MOST_TRIED} tokens can stand for the vectors; leave the "
        "attack out with --kinds"
    )


@contextmanager
def soft_prompt(vlm: VLM, token: int, seed: int) -> Iterator[Any]:
    """Yields vectors [VECTORS, E] to train, which take the place of a token's embeddings."""
    import torch

    embeddings = vlm.writer.get_input_embeddings()
    weight = embeddings.weight
    random = torch.Generator().manual_seed(seed)
    some = torch.randint(len(weight), (VECTORS,), generator=random)
    vectors = weight[some.to(weight.device)].detach().clone().requires_grad_(True)

    def replaced(module: Any, arguments: Any, output: Any) -> Any:
        mask = arguments[0] == token
        # A generated token may be the placeholder as well; it keeps its own embedding.
        if not int(mask.sum()) or int(mask.sum()) % VECTORS:
            return output
        rows = int(mask.sum()) // VECTORS
        return output.masked_scatter(mask[..., None], vectors.repeat(rows, 1).to(output.dtype))

    hook = embeddings.register_forward_hook(replaced)
    try:
        yield vectors
    finally:
        hook.remove()


ATTACK = Attack(
    "soft_prompt",
    f"Trains {VECTORS} input embeddings before the question, on labelled images; all weights stay.",
    {
        budget: f"as many images as relearning has at most, up to {steps} steps, learning rate "
        f"{LEARNING_RATE}"
        for budget, steps in STEPS.items()
    },
    CONTROLS,
    True,
    trials,
)
