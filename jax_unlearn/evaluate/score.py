"""Score: a cheap evaluation of an adapter, for the many settings of a sweep."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from jax_unlearn.evaluate.probes import Classifier, LinearProbe, Split, drift, threads_for


@dataclass(frozen=True)
class Score:
    """How much is forgotten and how much is kept, on held-out samples.

    Attributes:
        before: share of forget samples classified as a forgotten class, without the adapter.
        forget: the same share, with the adapter.
        chance: expected share of a uniform guess.
        preserve: accuracy on preserve samples, with the adapter.
        drift: mean relative distance that preserve embeddings moved, largest over the projectors.
        selectivity_before: share of forget samples whose predicted class has the other words of
            their class name ("red" of "red triangle", if triangles are forgotten), without the
            adapter; None if the class names have no other words.
        selectivity: the same share, with the adapter.
    """

    before: float
    forget: float
    chance: float
    preserve: float
    drift: float
    selectivity_before: float | None = None
    selectivity: float | None = None


def fit_probes(train: Mapping[str, Split]) -> dict[str, Classifier]:
    """Fit a linear probe on the original features of every projector."""
    with threads_for(train):
        return {k: LinearProbe().fit(split.before, split.labels) for k, split in train.items()}


def score(probes: Mapping[str, Classifier], test: Mapping[str, Split]) -> Score:
    """Score with the probe of the worst projector, as in the headline of metrics.json."""
    before, forget, preserve, moved, chance = [], [], [], [], 0.0
    kept: list[tuple[float, float]] = []
    for name, split in test.items():
        first, predicted = (probes[name].predict(x) for x in (split.before, split.after))
        rows, keep = split.is_forget, ~split.is_forget
        forgotten, classes = np.unique(split.labels[rows]), probes[name].classes_
        before.append(np.isin(first[rows], forgotten).mean())
        forget.append(np.isin(predicted[rows], forgotten).mean())
        preserve.append((predicted == split.labels)[keep].mean())
        moved.append(drift(split.before[keep], split.after[keep])["relative"])
        chance = np.isin(classes, forgotten).mean()
        if rest := other_words(forgotten):
            kept.append(
                (_says(first[rows], split.labels[rows], rest),
                 _says(predicted[rows], split.labels[rows], rest))
            )  # fmt: skip
    selectivity = min(kept, key=lambda pair: pair[1]) if kept else (None, None)
    return Score(
        float(max(before)), float(max(forget)), float(chance), float(min(preserve)),
        float(max(moved)), *selectivity,
    )  # fmt: skip


def other_words(forgotten: Collection[str]) -> dict[str, set[str]]:
    """The words of each forgotten class's name that not all forgotten classes share.

    Empty if they share no word, or if one of them has no other word.
    """
    words = {str(name): set(str(name).lower().split()) for name in forgotten}
    common = reduce(set.intersection, words.values())
    rest = {name: own - common for name, own in words.items()}
    return rest if common and all(rest.values()) else {}


def _says(predicted: np.ndarray, labels: np.ndarray, rest: Mapping[str, set[str]]) -> float:
    """Share of predictions that contain the other words of the right name."""
    pairs = zip(predicted, labels, strict=True)
    return float(np.mean([rest[str(right)] <= set(str(said).lower().split())
                          for said, right in pairs]))  # fmt: skip
