"""Three numbers for an adapter, cheap enough for hundreds of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator

from jax_unlearn.evaluate.probes import Split, drift, linear_probe


@dataclass(frozen=True)
class Score:
    """On held-out samples: how much is forgotten, and how much is kept.

    forget: share of those to forget that are still given a forgotten name; chance: what a guess
    would score there. preserve: accuracy on the others. drift: their embeddings' mean relative
    movement, the largest over the paths.
    """

    forget: float
    chance: float
    preserve: float
    drift: float


def fit_probes(train: Mapping[str, Split]) -> dict[str, BaseEstimator]:
    """A linear probe on every path's original features."""
    return {path: linear_probe().fit(split.before, split.labels) for path, split in train.items()}


def score(probes: Mapping[str, BaseEstimator], test: Mapping[str, Split]) -> Score:
    """By the probe of the worst path, as the headline of metrics.json."""
    forget, preserve, moved, chance = [], [], [], 0.0
    for path, split in test.items():
        predicted, keep = probes[path].predict(split.after), ~split.is_forget
        forgotten, classes = np.unique(split.labels[split.is_forget]), probes[path].classes_
        forget.append(np.isin(predicted[split.is_forget], forgotten).mean())
        preserve.append((predicted == split.labels)[keep].mean())
        moved.append(drift(split.before[keep], split.after[keep])["relative"])
        chance = np.isin(classes, forgotten).mean()
    return Score(float(max(forget)), float(chance), float(min(preserve)), float(max(moved)))
