"""Zero-shot classification: an image gets the name whose text embedding is nearest in cosine."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_unlearn.features.similarity import Named, classify, unit

# Number of preserve names that count as neighbours of each forgotten name.
NEIGHBOURS = 5


def near_names(names: Named, forget: Sequence[str], count: int) -> list[str]:
    """The `count` preserve names nearest to each forgotten name, by cosine of text embeddings."""
    is_forget = np.isin(names.labels, forget)
    rows = unit(names.embeddings)
    likeness = (rows[~is_forget] @ rows[is_forget].T).T
    nearest = np.unique(np.argsort(-likeness, axis=1)[:, :count])
    return [str(name) for name in names.labels[~is_forget][nearest]]


def shares(
    images: Named, names: Named, forget: Sequence[str], neighbours: Sequence[str]
) -> dict[str, float | None]:
    """Accuracy on the forgotten classes' images, on all others, and on the neighbours among them.

    None for a group without images.
    """
    right = classify(images.embeddings, names) == images.labels
    is_forget = np.isin(images.labels, forget)
    groups = {
        "forget": is_forget,
        "others": ~is_forget,
        "neighbours": np.isin(images.labels, neighbours),
    }
    return {
        name: float(right[rows].mean()) if rows.any() else None for name, rows in groups.items()
    }


def by_class(images: Named, names: Named, classes: Sequence[str]) -> dict[str, float | None]:
    """Accuracy on the images of each class; None without images."""
    right = classify(images.embeddings, names) == images.labels
    rows = {name: images.labels == name for name in classes}
    return {name: float(right[r].mean()) if r.any() else None for name, r in rows.items()}


def compare(
    images_before: Named,
    names_before: Named,
    images_after: Named,
    names_after: Named,
    forget: Sequence[str],
) -> dict[str, Any]:
    """The zero-shot part of metrics.json, and its headline accuracies."""
    neighbours = near_names(names_before, forget, NEIGHBOURS)
    before = shares(images_before, names_before, forget, neighbours)
    after = shares(images_after, names_after, forget, neighbours)
    classes = [
        by_class(i, n, forget)
        for i, n in ((images_before, names_before), (images_after, names_after))
    ]
    chance = 1 / len(np.unique(names_before.labels))
    return {
        "forget": {
            "accuracy_before": before["forget"],
            "accuracy_after": after["forget"],
            "chance": chance,
        },
        "preserve": {"accuracy_before": before["others"], "accuracy_after": after["others"]},
        "chance": {"forget": chance, "preserve": chance, "neighbours": chance},
        "neighbours": neighbours,
        "zero_shot": {
            "chance": chance,
            "neighbours": neighbours,
            "before": before,
            "after": after,
            "classes": {n: {"before": classes[0][n], "after": classes[1][n]} for n in forget},
        },
    }
