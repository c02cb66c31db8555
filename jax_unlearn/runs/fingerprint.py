"""Fingerprint of a run: facts that must match between its processes, and when it is resumed."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runtime.resume import Facts
from jax_unlearn.runtime.used_if import leaf_fields

GROUPS = {
    "forget": "the images to forget",
    "preserve": "the images to preserve",
    "forget_held_out": "the images held out to test forgetting",
    "preserve_held_out": "the images held out to test preserving",
    "stand_in": "the images of the stand-in",
    "stand_in_held_out": "the images held out of the stand-in",
}


def fingerprint(
    config: RunConfig,
    dataset: Dataset[Any],
    contents: Iterable[np.ndarray | bytes],
    devices: int | str,
    samples: str | None = None,
) -> Facts:
    """The facts that determine a run's result, normalised by a JSON round trip.

    Args:
        config: the settings; those of `execution` are left out.
        dataset: the samples.
        contents: contents of what else is read: weights and files.
        devices: number of devices that run the tower, or the shape of their mesh.
        samples: fingerprint of all samples, if they are not to be read.
    """
    groups = dataset.groups()
    digests = {name: samples or dataset.fingerprint(name) for name in groups}
    how = leaf_fields(config.execution)
    facts: Facts = {
        "settings": {name: value for name, value in to_json(config).items() if name not in how},
        "samples": digests,
        "counts": {name: len(group) for name, group in groups.items()},
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
    """Describe how two fingerprints differ, one clause per difference.

    Args:
        theirs: facts of another process or an earlier run.
        ours: facts of this process.
        when: names of the two for the clauses, such as "then" and "now".
    """
    they, we = when
    changed = [
        f"--{name.replace('_', '-')}: {theirs['settings'].get(name)} {they}, {value} {we}"
        for name, value in ours["settings"].items()
        if theirs["settings"].get(name) != value
    ]
    for name, what in GROUPS.items():
        if theirs["samples"].get(name) != ours["samples"].get(name):
            counts = ", ".join(
                f"{one['counts'].get(name, 0)} {side}" for one, side in ((theirs, they), (ours, we))
            )
            changed.append(f"{what} differ: {counts}")
    if theirs["contents"] != ours["contents"]:
        changed.append(f"{ours['settings']['checkpoint']}: other weights {they} than {we}")
    if theirs["devices"] != ours["devices"]:
        changed.append(f"devices: {theirs['devices']} {they}, {ours['devices']} {we}")
    return changed
