"""A few numbers for an adapter, cheap enough for hundreds of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from sklearn.base import BaseEstimator

from jax_unlearn.evaluate.probes import Split, drift, linear_probe


@dataclass(frozen=True)
class Score:
    """On held-out samples: how much is forgotten, and how much is kept.

    Attributes:
        before, forget: share of the samples to forget that are given a forgotten name, without the
            adapter and with it; chance: what a guess would score there.
        preserve: accuracy on the others.
        drift: mean relative movement of the others' embeddings, the largest over the projectors.
        selectivity: share of the samples to forget that are still given what else their class names
            say ("red" of "red triangle", where triangles are forgotten), without the adapter and
            with it; None where the class names say nothing else.
    """

    before: float
    forget: float
    chance: float
    preserve: float
    drift: float
    selectivity_before: float | None = None
    selectivity: float | None = None


def fit_probes(train: Mapping[str, Split]) -> dict[str, BaseEstimator]:
    """A linear probe on every projector's original features."""
    return {name: linear_probe().fit(split.before, split.labels) for name, split in train.items()}


def score(probes: Mapping[str, BaseEstimator], test: Mapping[str, Split]) -> Score:
    """By the probe of the worst projector, as the headline of metrics.json."""
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
    """What each forgotten class's name says besides the words that all of them share.

    Empty where they share none, or where one of them says nothing else.
    """
    words = {str(name): set(str(name).lower().split()) for name in forgotten}
    common = reduce(set.intersection, words.values())
    rest = {name: own - common for name, own in words.items()}
    return rest if common and all(rest.values()) else {}


def _says(predicted: np.ndarray, labels: np.ndarray, rest: Mapping[str, set[str]]) -> float:
    """Share of predictions that hold the other words of the right name."""
    pairs = zip(predicted, labels, strict=True)
    return float(np.mean([rest[str(right)] <= set(str(said).lower().split())
                          for said, right in pairs]))  # fmt: skip
