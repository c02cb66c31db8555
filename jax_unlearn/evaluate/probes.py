"""What can still be read from the embeddings: readers fitted before the edit, and after it.

A reader is a classifier on images' mean embeddings of one path to the language model. One fitted on
the original features says what the model's own later layers may still see; one refitted on the
edited features says what someone who wants to know can still find.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jax_unlearn.features.similarity import most_similar

# How many preserve classes count as near to each forgotten one.
NEIGHBOUR_CLASSES = 3
Embeddings = Float[np.ndarray, "n e"]
Labels = np.ndarray
Fitted = Mapping[str, Mapping[str, BaseEstimator]]


def nearest_mean() -> BaseEstimator:
    return NearestCentroid()


def nearest_neighbour() -> BaseEstimator:
    return KNeighborsClassifier(n_neighbors=1, algorithm="brute")


def linear_probe() -> BaseEstimator:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))


FITTED_BEFORE = {"nearest_mean": nearest_mean, "linear_probe": linear_probe}
REFITTED = {"refitted_probe": linear_probe, "refitted_neighbour": nearest_neighbour}


@dataclass(frozen=True)
class Split:
    """Images' mean embeddings of one path, before and after the edit, and their labels."""

    before: Embeddings
    after: Embeddings
    labels: Labels
    is_forget: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Groups:
    """Rows of the test images to score apart; `forget_classes` are the names to be forgotten."""

    forget_classes: Labels
    forget: Bool[np.ndarray, " n"]
    preserve: Bool[np.ndarray, " n"]
    neighbours: Bool[np.ndarray, " n"]

    def score(self, predicted: Labels, labels: Labels) -> dict[str, float | None]:
        """forget: share of forget images given any forgotten class; the others: accuracy."""
        named, right = np.isin(predicted, self.forget_classes), predicted == labels
        return {
            "forget": _share(named[self.forget]),
            "preserve": _share(right[self.preserve]),
            "neighbours": _share(right[self.neighbours]),
        }


def _share(hits: Bool[np.ndarray, " n"]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def neighbour_classes(train: Mapping[str, Split]) -> list[str]:
    """The preserve classes that are nearest to some forgotten class, over all paths."""
    one = next(iter(train.values()))
    classes = np.unique(one.labels)
    rows = [one.labels == name for name in classes]
    is_forget = np.array([one.is_forget[row].any() for row in rows])
    means = [np.stack([s.before[row].mean(axis=0) for row in rows]) for s in train.values()]
    nearest = np.unique(most_similar(means, is_forget, NEIGHBOUR_CLASSES))
    return [str(name) for name in classes[~is_forget][nearest]]


def fit_before(train: Mapping[str, Split]) -> Fitted:
    """Every reader on every path's original features: {path: {reader: fitted reader}}."""
    readers = {**FITTED_BEFORE, **REFITTED}
    return {
        path: {name: make().fit(split.before, split.labels) for name, make in readers.items()}
        for path, split in train.items()
    }


def read_path(
    train: Split, test: Split, groups: Groups, fitted: Mapping[str, BaseEstimator]
) -> dict[str, dict[str, Any]]:
    """Every reader on one path: {reader: {before: {group: share}, after: {group: share}}}."""
    scores: dict[str, dict[str, Any]] = {}
    for name, reader in fitted.items():
        before = groups.score(reader.predict(test.before), test.labels)
        if name in REFITTED:
            reader = REFITTED[name]().fit(train.after, train.labels)
        after = groups.score(reader.predict(test.after), test.labels)
        scores[name] = {"before": before, "after": after}
    return scores


def drift(before: Embeddings, after: Embeddings) -> dict[str, float]:
    """How far embeddings moved: mean relative distance, and mean cosine to where they were."""
    norm = np.linalg.norm(before, axis=1)
    moved = np.linalg.norm(after - before, axis=1)
    cosine = (before * after).sum(axis=1) / (norm * np.linalg.norm(after, axis=1))
    return {"relative": float((moved / norm).mean()), "cosine": float(cosine.mean())}


def read_all(
    train: Mapping[str, Split], test: Mapping[str, Split], fitted: Fitted | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Readers and drift of every path, and the neighbour classes.

    fitted: what `fit_before` gave for these training images, to spare fitting it again.
    """
    neighbours = neighbour_classes(train)
    one = next(iter(test.values()))
    groups = Groups(
        forget_classes=np.unique(one.labels[one.is_forget]),
        forget=one.is_forget,
        preserve=~one.is_forget,
        neighbours=~one.is_forget & np.isin(one.labels, neighbours),
    )
    fitted = fitted or fit_before(train)
    paths = {}
    for path in train:
        keep = ~test[path].is_forget
        paths[path] = {
            "readers": read_path(train[path], test[path], groups, fitted[path]),
            "drift": drift(test[path].before[keep], test[path].after[keep]),
        }
    return paths, neighbours


def read_splits(
    train: Mapping[str, Split], test: Mapping[str, Split], fitted: Fitted | None = None
) -> dict[str, Any]:
    """The readers' part of metrics.json, from every path's embeddings."""
    paths, neighbours = read_all(train, test, fitted)
    one = next(iter(train.values()))
    classes = len(np.unique(one.labels))
    # What a guess among the classes would score.
    chance = {
        "forget": len(np.unique(one.labels[one.is_forget])) / classes,
        "preserve": 1 / classes,
        "neighbours": 1 / classes,
    }
    read = {"paths": paths, "neighbours": neighbours, "chance": chance}
    return headline(paths, chance["forget"]) | {"refitted": refitted(paths)} | read


def refitted(paths: Mapping[str, Any]) -> dict[str, float]:
    """Forget images named by a linear probe fitted after the edit, worst case over the paths.

    What someone who looks for the concept still finds: the probe is fitted on edited features.
    """
    probes = [path["readers"]["refitted_probe"] for path in paths.values()]
    return {
        "accuracy_before": max(p["before"]["forget"] for p in probes),
        "accuracy_after": max(p["after"]["forget"] for p in probes),
    }


def headline(paths: Mapping[str, Any], chance: float) -> dict[str, dict[str, float]]:
    """The worst case over the paths, by the linear probe fitted on the original features."""
    probes = [path["readers"]["linear_probe"] for path in paths.values()]
    return {
        "forget": {
            "accuracy_before": max(p["before"]["forget"] for p in probes),
            "accuracy_after": max(p["after"]["forget"] for p in probes),
            "chance": chance,
        },
        "preserve": {
            "accuracy_before": min(p["before"]["preserve"] for p in probes),
            "accuracy_after": min(p["after"]["preserve"] for p in probes),
        },
    }
