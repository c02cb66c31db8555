"""What a run is made of: must be the same for all its processes, and for a run that goes on."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from jax_unlearn.config import HOW_IT_RUNS, RunConfig, to_json
from jax_unlearn.dataset import Dataset

Facts = dict[str, Any]

GROUPS = {
    "forget": "the images to forget",
    "preserve": "the images to preserve",
    "forget_held_out": "the images held out to test forgetting",
    "preserve_held_out": "the images held out to test preserving",
}


def identity(
    config: RunConfig, dataset: Dataset, weights: Iterable[np.ndarray], devices: int
) -> Facts:
    """The settings, the samples, the weights that are read, and the number of devices."""
    settings = {name: value for name, value in to_json(config).items() if name not in HOW_IT_RUNS}
    groups = dataset.groups()
    facts: Facts = {
        "settings": settings,
        "samples": {name: dataset.fingerprint(name) for name in groups},
        "counts": {name: len(group) for name, group in groups.items()},
        "weights": digest(weights),
        "devices": devices,
    }
    # As it will be read again.
    return dict(json.loads(json.dumps(facts)))


def digest(arrays: Iterable[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).view(np.uint8).data)
    return total.hexdigest()


def differences(theirs: Facts, ours: Facts, when: tuple[str, str]) -> list[str]:
    """What is not the same, one clause each.

    Args:
        when: what to call the two, as "then" and "now".
    """
    they, we = when
    changed = [
        f"--{name.replace('_', '-')}: {theirs['settings'].get(name)} {they}, {value} {we}"
        for name, value in ours["settings"].items()
        if theirs["settings"].get(name) != value
    ]
    for name, what in GROUPS.items():
        if theirs["samples"][name] != ours["samples"][name]:
            counts = f"{theirs['counts'][name]} {they}, {ours['counts'][name]} {we}"
            changed.append(f"{what} are others: {counts}")
    if theirs["weights"] != ours["weights"]:
        changed.append(f"{ours['settings']['checkpoint']}: other weights {they} than {we}")
    if theirs["devices"] != ours["devices"]:
        changed.append(f"devices: {theirs['devices']} {they}, {ours['devices']} {we}")
    return changed
