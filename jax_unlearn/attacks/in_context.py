"""Attack: show labelled example images in the prompt before the image in question."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.groups import Groups, spread
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.relearning import examples
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.evaluate.vlm.asking import (
    conversation_tokens,
    generate,
    preprocess,
    small_model_threads,
)
from jax_unlearn.evaluate.vlm.model import VLM

CONTROLS = {BEFORE: "the model before the edit, shown the same examples"}
# Numbers of examples of the concept; as many of the class it is moved onto stand beside them.
SHOWN = {"small": (1, 2), "full": (1, 2, 4, 8)}
TESTED = {"small": 32, "full": 200}
BATCH, MAX_NEW_TOKENS = 16, 32


def trials(run: AttackedRun) -> Iterator[Trial]:
    for seed in run.seeds:
        for count in SHOWN[run.budget]:
            for subject in (EDITED, BEFORE):
                measure = partial(asked, run, count, subject, seed)
                yield Trial(subject, {"examples": count}, seed, measure)


def asked(run: AttackedRun, count: int, subject: str, seed: int) -> list[Row]:
    fit, test = run.split(seed)
    sides = (spread(fit.forget, count), spread(fit.counterpart, count))
    # One of the concept, one of the other class, and so on.
    shown = [file for pair in zip(*sides, strict=False) for file in pair] or list(sides[0])
    turns = [examples(run, file) for file in shown]
    most = TESTED[run.budget]
    groups = Groups(*(spread(side, most) for side in (test.forget, test.counterpart, test.others)))

    def answers(vlm: VLM, images: Sequence[Image.Image], question: str) -> list[str]:
        before = [
            (one.image, question, one.answer) for own in turns for one in own
            if one.question == question
        ]  # fmt: skip
        return ask_after(vlm, before, images, question)

    with run.model.of(subject):
        return [dict(rates(run.model.vlm, run.naming, groups, answers=answers))]


def ask_after(
    vlm: VLM,
    shown: Sequence[tuple[Image.Image, str, str]],
    images: Sequence[Image.Image],
    question: str,
) -> list[str]:
    """Answers about images after a conversation about others.

    Args:
        vlm: the model.
        shown: an image, a question about it and its answer, for each turn before.
        images: the images to ask about.
        question: the question.
    """
    first = [preprocess(vlm, image) for image, _, _ in shown]
    turns = [*((text, answer) for _, text, answer in shown), (question, None)]
    last = [preprocess(vlm, image) for image in images]
    answers = [""] * len(images)
    for grid in dict.fromkeys(grid for _, grid in last):
        grids = [*(own for _, own in first), grid]
        prompt = conversation_tokens(vlm, turns, grids)
        own = [i for i, (_, theirs) in enumerate(last) if theirs == grid]
        for start in range(0, len(own), BATCH):
            batch = own[start : start + BATCH]
            patches = [np.concatenate([*(p for p, _ in first), last[i][0]]) for i in batch]
            with small_model_threads(vlm.model):
                said = generate(vlm, prompt, grids, patches, MAX_NEW_TOKENS)
            for i, answer in zip(batch, said, strict=True):
                answers[i] = answer
    return answers


ATTACK = Attack(
    "in_context",
    "Shows labelled images of the concept and of the class it is moved onto in the prompt.",
    {
        budget: f"{', '.join(map(str, counts))} examples of each, at most {TESTED[budget]} images "
        "of each group"
        for budget, counts in SHOWN.items()
    },
    CONTROLS,
    True,
    trials,
)
