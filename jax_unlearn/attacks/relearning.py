"""Attack: fine-tune the language model on a few labelled images of the concept.

LoRA of rank 8 on all Linears of the language model, the edited Mergers frozen. Half of each batch
are images to keep with their right answers, among them the class that the concept is moved onto, so
that the false positive rate falls as well. The model is trained until TPR − FPR stops rising, since
short budgets flatter an edit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image

from jax_unlearn.attacks.edited_model import EditedModel, rates, right_answers
from jax_unlearn.attacks.fine_tuning import (
    BATCH,
    Encoded,
    Example,
    encode,
    linears_in,
    lora,
    mixed_batches,
    train,
    until_no_rise,
)
from jax_unlearn.attacks.groups import Groups
from jax_unlearn.attacks.never_trained import stars
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.evaluate.vlm.model import VLM

PERMUTED, NEVER_TRAINED = "permuted labels", "class never trained"
IMAGES = {"small": (4, 32), "full": (1, 4, 16, 64, 250)}
STEPS = {"small": 200, "full": 800}
LEARNING_RATE = 2e-3
CONTROLS = {
    PERMUTED: "the same images with their answers exchanged at random: no relation to learn",
    NEVER_TRAINED: "the concept's name taught on drawings that the model was never trained on",
}


def numbers(run: AttackedRun) -> tuple[list[int], list[int]]:
    """(numbers of images that are there, numbers that are not)."""
    there = min(len(run.split(seed)[0].forget) for seed in run.seeds)
    wanted = IMAGES[run.budget]
    return [n for n in wanted if n <= there], [n for n in wanted if n > there]


def in_language_model(model: EditedModel) -> list[str]:
    return linears_in(model.vlm, "language_model")


Linears = Callable[[EditedModel], list[str]]


def trials(run: AttackedRun, linears: Linears = in_language_model) -> Iterator[Trial]:
    for seed in run.seeds:
        for count in numbers(run)[0]:
            for subject in (EDITED, *CONTROLS):
                measure = partial(relearn, run, linears, count, subject, seed)
                yield Trial(subject, {"images": count}, seed, measure)


def left_out(run: AttackedRun) -> list[str]:
    missing = numbers(run)[1]
    if not missing:
        return []
    count = min(len(run.split(seed)[0].forget) for seed in run.seeds)
    return [
        f"{', '.join(map(str, missing))} images: not tried: half of the held-out images to forget "
        f"are only {count}; hold out more with --forget-held-out"
    ]


def relearn(run: AttackedRun, linears: Linears, count: int, subject: str, seed: int) -> list[Row]:
    """Rates after each number of steps."""
    model, test = run.model, run.split(seed)[1]
    concept, keep = training_examples(run, count, subject, seed)
    pictures: list[Image.Image] = []
    if subject == NEVER_TRAINED:
        drawn = stars(concept[0].image.size, seed)
        name = concept[0].answer
        concept = [Example(next(drawn), one.question, name) for one in concept]
        pictures = [*islice(drawn, len(test.forget))]
    with lora(model.vlm, linears(model), seed) as (vlm, parameters):
        batches = mixed_batches(encoded(vlm, concept), encoded(vlm, keep), seed)

        def ask_again() -> Row:
            if not pictures:
                return dict(rates(vlm, run.naming, test))
            found = rates(vlm, run.naming, Groups((), test.counterpart, test.others))
            named = rates(vlm, run.naming, Groups(test.forget, (), ()), lambda _: pictures)
            # Whether a star has the right name of the image whose place it takes means nothing.
            return {**found, "true_positive_rate": named["true_positive_rate"]}

        steps = train(vlm, parameters, batches, LEARNING_RATE, STEPS[run.budget])
        return until_no_rise(ask_again, steps)


def training_examples(
    run: AttackedRun, count: int, subject: str, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples of so many images of the concept, and of images to keep, with the right answers.

    For the subject PERMUTED the answers are exchanged at random.
    """
    fit = run.split(seed)[0]
    shown = fit.forget[:: max(1, len(fit.forget) // count)][:count]
    concept = [example for file in shown for example in examples(run, file)]
    keep = [example for file in kept(fit, seed) for example in examples(run, file)]
    return permuted(concept, keep, seed) if subject == PERMUTED else (concept, keep)


def encoded(vlm: VLM, examples: Sequence[Example]) -> list[Encoded]:
    return [encode(vlm, example) for example in examples]


def examples(run: AttackedRun, file: ImageFile) -> list[Example]:
    """The naming questions about an image with their right answers."""
    image = read_image(file.source())
    questions = run.naming.questions
    answers = right_answers(questions, file)
    return [
        Example(image, q.text, answer)
        for q, answer in zip(questions, answers, strict=True)
        if answer
    ]


def kept(fit: Groups, seed: int) -> list[ImageFile]:
    """Images to keep: of the class that the concept is moved onto, and as many others."""
    random = np.random.default_rng(seed)
    most = 4 * BATCH
    return [
        side[i]
        for side in (fit.counterpart, fit.others)
        for i in random.permutation(len(side))[:most]
    ]


def permuted(
    concept: Sequence[Example], keep: Sequence[Example], seed: int
) -> tuple[list[Example], list[Example]]:
    """The same images and questions with the answers exchanged at random."""
    whole = [*concept, *keep]
    random = np.random.default_rng(seed)
    order = random.permutation(len(whole))
    mixed = [
        Example(one.image, one.question, whole[i].answer)
        for one, i in zip(whole, order, strict=True)
    ]
    return mixed[: len(concept)], mixed[len(concept) :]


ATTACK = Attack(
    "relearning",
    "Fine-tunes the language model (LoRA of rank 8, the Mergers frozen) on labelled images of the "
    "concept, of the class it is moved onto and of others.",
    {
        budget: f"{', '.join(map(str, IMAGES[budget]))} images to forget, up to {STEPS[budget]} "
        f"steps of {BATCH} examples, learning rate {LEARNING_RATE}"
        for budget in IMAGES
    },
    CONTROLS,
    True,
    trials,
    left_out,
)
