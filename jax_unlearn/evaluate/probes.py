"""Classifiers ("readers") on embeddings, fitted before the edit and after it.

A reader is a classifier on images' mean embeddings by one projector. A reader fitted on the
original features shows what the model's later layers may still recognise; one refitted on the
edited features shows what remains in them for someone who looks for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jax_unlearn.features.similarity import most_similar

# Number of preserve classes that count as neighbours of each forgotten class.
NEIGHBOUR_CLASSES = 3
# `products` of a logistic regression: below FEW it is fitted by one thread; above MOST, where it
# takes more than some ten seconds on two cores, by another probe.
FEW, MOST = 10**8, 10**9
Embeddings = Float[np.ndarray, "n e"]
Labels = np.ndarray
# A classifier of scikit-learn. Only who makes one imports that: it doubles the time of starting.
Classifier = Any
Fitted = Mapping[str, Mapping[str, Classifier]]


def nearest_mean() -> Classifier:
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid()


def nearest_neighbour() -> Classifier:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=1, algorithm="brute")


class LinearProbe:
    """A linear classifier of standardised features.

    Logistic regression, or where its fit would take many minutes, ridge regression onto the
    classes, with a hundredth of a feature's sum of squares as penalty.

    Attributes:
        kind: which of the two, after `fit`.
    """

    kind: str

    def fit(self, x: Embeddings, labels: Labels) -> "LinearProbe":
        from sklearn.linear_model import LogisticRegression, RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        many = products(x, labels) > MOST
        self.kind = "ridge regression" if many else "logistic regression"
        model = LogisticRegression(max_iter=300, tol=1e-3)
        if many:
            model = RidgeClassifier(alpha=len(x) / 100)
        self.model = make_pipeline(StandardScaler(), model).fit(x, labels)
        return self

    def predict(self, x: Embeddings) -> Labels:
        return np.asarray(self.model.predict(x))

    @property
    def classes_(self) -> Labels:
        return np.asarray(self.model.classes_)


def products(x: Embeddings, labels: Labels) -> int:
    """Rows × features × classes."""
    return x.size * len(np.unique(labels))


FITTED_BEFORE = {"nearest_mean": nearest_mean, "linear_probe": LinearProbe}
REFITTED = {"refitted_probe": LinearProbe, "refitted_neighbour": nearest_neighbour}


@dataclass(frozen=True)
class Split:
    """Images' mean embeddings by one projector, before and after the edit, and their labels."""

    before: Embeddings
    after: Embeddings
    labels: Labels
    is_forget: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Groups:
    """Masks of the groups of test images; `forget_classes` are the classes to forget."""

    forget_classes: Labels
    forget: Bool[np.ndarray, " n"]
    preserve: Bool[np.ndarray, " n"]
    neighbours: Bool[np.ndarray, " n"]

    def score(self, predicted: Labels, labels: Labels) -> dict[str, float | None]:
        """For forget images, the share classified as any forgotten class; else the accuracy."""
        named, right = np.isin(predicted, self.forget_classes), predicted == labels
        return {
            "forget": _share(named[self.forget]),
            "preserve": _share(right[self.preserve]),
            "neighbours": _share(right[self.neighbours]),
        }


def _share(hits: Bool[np.ndarray, " n"]) -> float | None:
    return float(hits.mean()) if len(hits) else None


@contextmanager
def threads_for(train: Mapping[str, Split]) -> Iterator[None]:
    """Limit the libraries of a block to one thread if probes of these images are fitted quickly.

    Such a fit consists of many products of microseconds, in which threads mostly wait for one
    another; on a machine that others use too, a fit took twenty times as long with two.
    """
    # First, since only the threads of loaded libraries can be limited.
    from sklearn import linear_model, neighbors  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    most = max(products(one.before, one.labels) for one in train.values())
    with threadpool_limits(1 if most < FEW else None):
        yield


def neighbour_classes(train: Mapping[str, Split]) -> list[str]:
    """The preserve classes nearest to some forgotten class, over all projectors."""
    one = next(iter(train.values()))
    classes = np.unique(one.labels)
    rows = [one.labels == name for name in classes]
    is_forget = np.array([one.is_forget[row].any() for row in rows])
    means = [np.stack([s.before[row].mean(axis=0) for row in rows]) for s in train.values()]
    nearest = np.unique(most_similar(means, is_forget, NEIGHBOUR_CLASSES))
    return [str(name) for name in classes[~is_forget][nearest]]


def fit_before(train: Mapping[str, Split]) -> Fitted:
    """Fit every reader on the original features: {projector: {reader: fitted reader}}."""
    readers = {**FITTED_BEFORE, **REFITTED}
    with threads_for(train):
        return {
            projector: {k: make().fit(split.before, split.labels) for k, make in readers.items()}
            for projector, split in train.items()
        }


def read_projector(
    train: Split, test: Split, groups: Groups, fitted: Mapping[str, Classifier]
) -> dict[str, dict[str, Any]]:
    """Scores of every reader: {reader: {before: {group: share}, after: {group: share}}}."""
    scores: dict[str, dict[str, Any]] = {}
    for name, reader in fitted.items():
        before = groups.score(reader.predict(test.before), test.labels)
        if name in REFITTED:
            reader = REFITTED[name]().fit(train.after, train.labels)
        after = groups.score(reader.predict(test.after), test.labels)
        scores[name] = {"before": before, "after": after}
    return scores


def drift(before: Embeddings, after: Embeddings) -> dict[str, float]:
    """Mean relative distance and mean cosine between the embeddings before and after."""
    norm = np.linalg.norm(before, axis=1)
    moved = np.linalg.norm(after - before, axis=1)
    cosine = (before * after).sum(axis=1) / (norm * np.linalg.norm(after, axis=1))
    return {"relative": float((moved / norm).mean()), "cosine": float(cosine.mean())}


def drift_by_class(splits: Mapping[str, Split]) -> dict[str, float]:
    """Mean relative distance that each preserve class's images moved, worst projector."""
    one = next(iter(splits.values()))
    found = dict.fromkeys(sorted({str(label) for label in one.labels[~one.is_forget]}), 0.0)
    for split in splits.values():
        for label in found:
            own = ~split.is_forget & (split.labels == label)
            moved = drift(split.before[own], split.after[own])["relative"]
            found[label] = max(found[label], moved)
    return found


def read_all(
    train: Mapping[str, Split], test: Mapping[str, Split], fitted: Fitted | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Scores of readers and drift by projector, and the neighbour classes.

    Args:
        train: embeddings of the training images, by projector.
        test: embeddings of the held-out images, by projector.
        fitted: result of `fit_before` for the same training images, if it is known.
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
    projectors = {}
    with threads_for(train):
        for name in train:
            keep = ~test[name].is_forget
            projectors[name] = {
                "readers": read_projector(train[name], test[name], groups, fitted[name]),
                "drift": drift(test[name].before[keep], test[name].after[keep]),
            }
    return projectors, neighbours


def read_splits(
    train: Mapping[str, Split], test: Mapping[str, Split], fitted: Fitted | None = None
) -> dict[str, Any]:
    """The part of metrics.json from readers, from the embeddings by every projector."""
    fitted = fitted or fit_before(train)
    projectors, neighbours = read_all(train, test, fitted)
    one = next(iter(train.values()))
    classes = len(np.unique(one.labels))
    # Expected score of a uniform guess among the classes.
    chance = {
        "forget": len(np.unique(one.labels[one.is_forget])) / classes,
        "preserve": 1 / classes,
        "neighbours": 1 / classes,
    }
    probe = next(iter(fitted.values()))["linear_probe"].kind
    read = {"paths": projectors, "neighbours": neighbours, "chance": chance, "probe": probe}
    return headline(projectors, chance["forget"]) | {"refitted": refitted(projectors)} | read


def refitted(projectors: Mapping[str, Any]) -> dict[str, float]:
    """Share of forget images named by a linear probe fitted on the edited features.

    The worst case over the projectors.
    """
    probes = [one["readers"]["refitted_probe"] for one in projectors.values()]
    return {
        "accuracy_before": max(p["before"]["forget"] for p in probes),
        "accuracy_after": max(p["after"]["forget"] for p in probes),
    }


def headline(projectors: Mapping[str, Any], chance: float) -> dict[str, dict[str, float]]:
    """Accuracies of the linear probe fitted on the original features, worst over projectors."""
    probes = [one["readers"]["linear_probe"] for one in projectors.values()]
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
