"""Where held-out images lie before and after the edit: two principal components per projector."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jax_unlearn.evaluate.probes import Split

# Images of a group that are shown, and decimals of their coordinates.
MOST, DECIMALS = 40, 3
GROUPS = ("forget", "counterpart", "others")


def maps(splits: Mapping[str, Split], counterpart: Collection[str]) -> dict[str, dict[str, Any]]:
    """Coordinates of the concept's images, its counterpart's and others, for each projector.

    The components are those of all shown images before the edit and of the concept's after it, so
    that both maps have the same axes.

    Args:
        splits: mean embeddings by projector.
        counterpart: the classes that the concept is compared with.

    Returns:
        For each projector `explained`, the share of the variance that both components have, and for
        each of GROUPS `before` and `after`, lists of (x, y).
    """
    found = {}
    for name, split in splits.items():
        onto = np.isin(split.labels, list(counterpart)) & ~split.is_forget
        masks = dict(zip(GROUPS, (split.is_forget, onto, ~split.is_forget & ~onto), strict=True))
        rows = {group: evenly(np.flatnonzero(mask)) for group, mask in masks.items()}
        shown = np.concatenate([*rows.values()])
        x = np.concatenate([split.before[shown], split.after[rows["forget"]]]).astype(np.float64)
        mean = x.mean(axis=0)
        _, values, axes = np.linalg.svd(x - mean, full_matrices=False)
        total = (values**2).sum() or 1.0
        found[name] = {
            "explained": float((values[:2] ** 2).sum() / total),
            "groups": {
                group: {
                    "before": coordinates(split.before[own], mean, axes),
                    "after": coordinates(split.after[own], mean, axes),
                }
                for group, own in rows.items()
            },
        }
    return found


def coordinates(x: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> list[list[float]]:
    return np.round((x - mean) @ axes[:2].T, DECIMALS).tolist()


def evenly(rows: np.ndarray) -> np.ndarray:
    """At most MOST of the rows, evenly spaced."""
    if len(rows) <= MOST:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST).astype(int)]
