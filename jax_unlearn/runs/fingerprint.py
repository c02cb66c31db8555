"""What a run is made of: must be the same for all its processes, and for a run that goes on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jax_unlearn.runs.settings.config import HOW_IT_RUNS, RunConfig, to_json

Facts = dict[str, Any]

GROUPS = {
    "forget": "the images to forget",
    "preserve": "the images to preserve",
    "forget_held_out": "the images held out to test forgetting",
    "preserve_held_out": "the images held out to test preserving",
}


def identity(
    config: RunConfig,
    samples: Mapping[str, str],
    counts: Mapping[str, int],
    contents: Iterable[np.ndarray | bytes],
    devices: int | str,
) -> Facts:
    """As JSON will have them again.

    Args:
        samples, counts: a fingerprint of each group of samples, and how many it has.
        contents: of what is read besides: weights, files.
        devices: that run the tower; the shape of their mesh, where they have one.
    """
    settings = {name: value for name, value in to_json(config).items() if name not in HOW_IT_RUNS}
    facts: Facts = {
        "settings": settings,
        "samples": dict(samples),
        "counts": dict(counts),
        "contents": digest(contents),
        "devices": f"{devices} of {jax.default_backend()}",
    }
    return dict(json.loads(json.dumps(facts)))


def digest(contents: Iterable[np.ndarray | bytes]) -> str:
    total = hashlib.sha256()
    for one in contents:
        total.update(one if isinstance(one, bytes) else np.ascontiguousarray(one).tobytes())
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
    if theirs["contents"] != ours["contents"]:
        changed.append(f"{ours['settings']['checkpoint']}: other weights {they} than {we}")
    if theirs["devices"] != ours["devices"]:
        changed.append(f"devices: {theirs['devices']} {they}, {ours['devices']} {we}")
    return changed
