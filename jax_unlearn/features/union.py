"""Statistics of the images of all processes, from those that each has of its own."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jax_unlearn.features.gram import lower_half, symmetric
from jax_unlearn.features.statistics import Statistics, joined, summed
from jax_unlearn.runtime import collectives, processes
from jax_unlearn.runtime.snapshots import Snapshot


def union(ours: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """What all processes have, by the names of the paths; no image may be with two of them.

    Gram matrices meet in an all-reduce: what it moves grows neither with the images nor with the
    processes. Rows, which are those of images to forget or few, go to every process.
    """
    if processes.count() == 1 or not ours:
        return dict(ours)
    counts = np.array([[one.count, one.gram is not None] for one in ours.values()], np.float64)
    # What one process has summed up all must, and all know of it before any sends its rows.
    own = {
        key: summed(one) if grams or count > len(one.total) else one
        for (key, one), (count, grams) in zip(
            ours.items(), collectives.all_reduce_sum(counts), strict=True
        )
    }
    found = dict(own)
    for theirs in collectives.all_gather_bytes(lambda: without_grams(own).to_bytes()):
        arrays = Snapshot.of_bytes(theirs).arrays
        found |= {key: joined(one, Statistics.of_arrays(arrays, key)) for key, one in found.items()}
    for key, one in own.items():
        if one.gram is not None:
            half = collectives.all_reduce_sum(lower_half(one.gram))
            found[key] = replace(found[key], gram=symmetric(half, len(one.total)))
    return found


def without_grams(statistics: Mapping[str, Statistics]) -> Snapshot:
    parts = (replace(one, gram=None).arrays(key) for key, one in statistics.items())
    return Snapshot({name: array for part in parts for name, array in part.items()}, {})
