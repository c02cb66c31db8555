"""Attack: tell the images that the edit was fitted on from other images of the concept.

Scores an image by how far the edit moves its embedding, and by how likely the model finds the right
answer about it. The area under the ROC curve (AUC) is 0.5 if both kinds of images look alike.
"""

from collections.abc import Iterator

import numpy as np

from jax_unlearn.attacks.edited_model import BEFORE
from jax_unlearn.attacks.fine_tuning import encode, log_likelihoods
from jax_unlearn.attacks.groups import spread
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.relearning import examples
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import SampleFeatures, images
from jax_unlearn.objective.projectors import projectors_of

CONTROLS = {
    BEFORE: "the same images by the model before the edit, by the norm of their embedding and by "
    "the likelihood of the right answer"
}
# The share of false positives at which the true positive rate is given, beside the AUC.
FALSE_POSITIVES = 0.05
MOST = {"small": 64, "full": 400}
BATCH = 32
EMBEDDING, LIKELIHOOD = "embedding change", "answer likelihood"


def trials(run: AttackedRun) -> Iterator[Trial]:
    for subject in (EDITED, BEFORE):

        def by_embedding(subject: str = subject) -> list[Row]:
            train, test = run.extracted.train.image_means().forget, run.extracted.test.forget
            return [scored(*(moved(run, side, subject) for side in (train, test)))]

        yield Trial(subject, {"by": EMBEDDING}, run.seeds[0], by_embedding)
        if run.cannot_be_asked:
            continue

        def by_likelihood(subject: str = subject) -> list[Row]:
            sides = (run.extracted.train.forget, run.extracted.test.forget)
            files = [spread(images(side), MOST[run.budget]) for side in sides]
            with run.model.of(subject):
                return [scored(*(likelihoods(run, one) for one in files))]

        yield Trial(subject, {"by": LIKELIHOOD}, run.seeds[0], by_likelihood)


def left_out(run: AttackedRun) -> list[str]:
    return [f"{LIKELIHOOD}: not tried: {run.cannot_be_asked}"] if run.cannot_be_asked else []


def moved(run: AttackedRun, side: SampleFeatures, subject: str) -> np.ndarray:
    """By image: the embedding's relative change over all projectors; before the edit its norm."""
    before, change = 0.0, 0.0
    for projector in projectors_of(run.extracted.linears):
        outputs = projector.last.output(side.taps[projector.last.name].x)
        before = before + (outputs**2).sum(axis=1)
        change = change + (projector.change(side, run.adapter) ** 2).sum(axis=1)
    return np.asarray(before if subject == BEFORE else change / before)


def likelihoods(run: AttackedRun, files: tuple[ImageFile, ...]) -> np.ndarray:
    """Mean log-likelihood of the right answers about each image."""
    import torch

    vlm = run.model.vlm
    found: list[float] = []
    questions = len(run.naming.questions)
    encoded = [encode(vlm, one) for file in files for one in examples(run, file)]
    with torch.inference_mode():
        for start in range(0, len(encoded), BATCH):
            found += log_likelihoods(vlm, encoded[start : start + BATCH]).tolist()
    return np.array(found).reshape(-1, questions).mean(axis=1)


def scored(train: np.ndarray, test: np.ndarray) -> Row:
    """The AUC, and the true positive rate at few false positives; larger scores mean `train`."""
    from sklearn.metrics import roc_auc_score, roc_curve

    labels = np.repeat([1, 0], [len(train), len(test)])
    scores = np.concatenate([train, test])
    false, true, _ = roc_curve(labels, scores)
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "true_positive_rate": float(true[false <= FALSE_POSITIVES].max()),
        "false_positive_rate": FALSE_POSITIVES,
        "images": [len(train), len(test)],
    }


ATTACK = Attack(
    "membership",
    "Tells the images that the edit was fitted on from held-out images of the concept.",
    {budget: f"at most {most} images of each for likelihoods" for budget, most in MOST.items()},
    CONTROLS,
    False,
    trials,
    left_out,
)
