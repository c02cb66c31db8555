"""Whether someone with a few labelled images finds a forgotten concept again in its embeddings.

A reader of two classes, the concept and its counterpart (`features.stand_in.Counterpart`), is
fitted on k labelled images of each and tested on others. Its score is the balanced accuracy, the
mean of both recalls: 0.5 is chance. Readers use the embeddings by all projectors together.

Readers are fitted on images that the edit was not fitted on: half of the held-out images, drawn
anew each time, and tested on the other half. Where there are too few, they are fitted on the edit's
own training images, which flatters the edit, and the result says so.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_unlearn.evaluate.probes import Classifier, nearest_mean, nearest_neighbour

SHOTS = (1, 3, 10, 30, 100)
DRAWS = 5
# With fewer held-out images of a side, half of them is too few to fit or to test readers on.
FEWEST = 10
# Constant of the law of `readable`, fitted to measurements on fresh images of drawings.
LAW = 75.0

Embeddings = Float[np.ndarray, "_ _"]
REFITTED = ("linear", "nearest_neighbour", "rbf")


def linear() -> Classifier:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=300, tol=1e-3)


def rbf() -> Classifier:
    from sklearn.svm import SVC

    return SVC()


# Best over these is the score of a number of labelled images.
READERS = {
    "nearest_mean": nearest_mean,
    "nearest_neighbour": nearest_neighbour,
    "linear": linear,
    "rbf": rbf,
}


@dataclass(frozen=True)
class TwoClasses:
    """Embeddings of a concept's images and of its counterpart's, to fit readers on and to test.

    fit: None if the images to test are halved instead.
    """

    forget: Embeddings
    counterpart: Embeddings
    fit: tuple[Embeddings, Embeddings] | None = None


def readable(forget: int, counterpart: int) -> float:
    """Accuracy that a linear reader of fresh images reaches after the target stand_in.

    Φ(½ √(75 (1/n_f + 1/n_g))), for readers with hundreds of labelled images; measured was up to
    0.06 more (docs/results/stand-in.md).

    Args:
        forget: number of different images to forget that the edit is fitted on.
        counterpart: number of stand-in images.
    """
    return NormalDist().cdf(math.sqrt(LAW * (1 / forget + 1 / counterpart)) / 2)


def few_shot(
    classes: TwoClasses,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
    permuted: bool = False,
) -> "Scores":
    """Balanced accuracy of the best reader for each number of labelled images of a side.

    Args:
        classes: the embeddings.
        shots: numbers of labelled images.
        draws: how often the labelled images are drawn.
        seed: seed of the draws.
        permuted: exchange the labels at random, as a control: readers are then at chance.

    Returns:
        For each number that is available, [mean, least, most] over the draws of the reader that is
        best on average; and for each of REFITTED, fitted on all images there are, its balanced
        accuracy and both recalls, averaged over the draws.
    """
    x, sides = reduced(classes)
    found: dict[int, dict[str, list[float]]] = {}
    refitted: dict[str, list[tuple[float, float]]] = {}
    most = 0
    for draw, (fit, test) in enumerate(splits(sides, draws, seed)):
        most = min(map(len, fit))
        for k in sorted({*(k for k in shots if k <= most), most} - {0}):
            rows = np.concatenate([fit[0][:k], fit[1][:k]])
            labels = np.repeat([1, 0], k)
            if permuted:
                labels = np.random.default_rng([seed, draw, k]).permutation(labels)
            scored = score_all(x, rows, labels, test, classes.forget.shape[1])
            if k == most:
                for name in REFITTED:
                    refitted.setdefault(name, []).append(scored[name])
            if k in shots:
                for name, recalls in scored.items():
                    found.setdefault(k, {}).setdefault(name, []).append(sum(recalls) / 2)
    curve = {}
    for k, readers in found.items():
        scores = max(readers.values(), key=lambda own: sum(own))
        curve[str(k)] = [float(np.mean(scores)), min(scores), max(scores)]
    both = {name: np.mean(recalls, axis=0) for name, recalls in refitted.items()}
    return Scores(
        curve,
        {
            name: {"balanced": float(r.mean()), "forget": float(r[0]), "counterpart": float(r[1])}
            for name, r in both.items()
        },
        most,
    )


@dataclass(frozen=True)
class Scores:
    """curve: by number of labelled images; refitted: by reader (`few_shot`), with `labelled`."""

    curve: dict[str, list[float]]
    refitted: dict[str, dict[str, float]]
    labelled: int


Pair = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]


@dataclass(frozen=True)
class SideRows:
    """Rows of both sides to test, and those to fit on; None if the rows to test are halved."""

    test: Pair
    fit: Pair | None


def splits(sides: SideRows, draws: int, seed: int = 0) -> Iterator[tuple[Pair, Pair]]:
    """Yields (rows to fit on, rows to test) of both sides, in random order, for each draw."""
    for draw in range(draws):
        random = np.random.default_rng(draw if seed == 0 else [seed, draw])
        first, second = (random.permutation(side) for side in sides.fit or sides.test)
        if sides.fit:
            yield (first, second), sides.test
        else:
            f, c = len(first) // 2, len(second) // 2
            yield (first[:f], second[:c]), (first[f:], second[c:])


def score_all(
    x: Embeddings,
    rows: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    test: Pair,
    width: int,
) -> dict[str, tuple[float, float]]:
    """Both recalls of every reader fitted on some rows of embeddings with `width` outputs."""
    # Here, as in `probes`, since it doubles the time of starting.
    from sklearn.exceptions import ConvergenceWarning

    found = {}
    mean = x[rows].mean(axis=0)
    # As if every output had unit variance on average; a penalty of readers depends on that.
    scale = np.sqrt(((x[rows] - mean) ** 2).sum() / len(rows) / width) or 1.0
    fitted, first, second = ((x[own] - mean) / scale for own in (rows, *test))
    for name, make in READERS.items():
        with warnings.catch_warnings():
            # Of one image a side the variance within a class is unknown, and with many images a
            # linear reader need not converge to be tested.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            warnings.filterwarnings("ignore", message="self.within_class_std_dev_")
            warnings.filterwarnings("ignore", category=ConvergenceWarning)
            reader = make().fit(fitted, labels)
        found[name] = (
            float((reader.predict(first) == 1).mean()),
            float((reader.predict(second) == 0).mean()),
        )
    return found


def reduced(classes: TwoClasses) -> tuple[Embeddings, SideRows]:
    """Coordinates of all images in the space that they span, and the rows of each side.

    Readers depend on distances and angles only, and at real widths the space of the images is much
    smaller than that of the embeddings.
    """
    groups = [classes.forget, classes.counterpart, *(classes.fit or ())]
    x = np.concatenate(groups).astype(np.float64)
    x -= x.mean(axis=0)
    if x.shape[1] > len(x):
        values, vectors = np.linalg.eigh(x @ x.T)
        x = vectors * np.sqrt(np.maximum(values, 0))
    ends = np.cumsum([0, *map(len, groups)])
    rows = [np.arange(start, end) for start, end in pairwise(ends)]
    fit = (rows[2], rows[3]) if classes.fit else None
    return x, SideRows((rows[0], rows[1]), fit)


def before_and_after(
    before: Mapping[str, TwoClasses], after: Mapping[str, TwoClasses], draws: int
) -> Any:
    """Scores before and after the edit, by how tokens are pooled (mean, max or spread)."""
    from sklearn import config_context
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    refitted: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    # The rows are checked already, and a fit of few rows takes less than the checks, or than
    # threads that wait for one another on a busy machine.
    with config_context(assume_finite=True, skip_parameter_validation=True), threadpool_limits(1):
        for pool, (when, sides) in product(before, (("before", before), ("after", after))):
            scores = few_shot(sides[pool], draws=draws)
            for k, values in scores.curve.items():
                curves.setdefault(pool, {}).setdefault(k, {})[when] = values
            for name, recalls in scores.refitted.items():
                refitted.setdefault(pool, {}).setdefault(name, {})[when] = recalls
    return {"few_shot": curves, "refitted": refitted}


def enough(forget: int, counterpart: int) -> bool:
    """Whether so many held-out images can be halved, to fit and to test readers."""
    return min(forget, counterpart) >= FEWEST
