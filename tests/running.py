"""Runs over a few of the shipped images on a tiny real checkpoint, through the command line."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

import porting
from jax_unlearn.features.statistics_file import read_statistics
from tests.problems import same_heads

CLASSES = {"forget": ["red triangle"], "preserve": ["blue circle", "astronaut"]}


def arguments(folder, out, **options):
    given = {
        "checkpoint": folder / "checkpoint",
        "forget": folder / "forget",
        "preserve": folder / "preserve",
        "out": out,
        "optimizer": "adam",
        "epochs": 30,
        "rank": 2,
    } | options
    flags = (
        [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        for key, value in given.items()
    )
    return ["run", *(part for flag in flags for part in flag)]


# The command line where rows are summed on the devices, as on an accelerator.
ON_DEVICE = """
import sys
from functools import partialmethod
from jax_unlearn.features.extractor import Extractor
Extractor.__init__ = partialmethod(Extractor.__init__, on_device=True)
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
"""


def same_outcome(ours, theirs):
    """The same statistics and the same change, to 1e-5, of runs over tokens."""
    for side in ("forget", "preserve"):
        found, expected = (read_statistics(run).features(side) for run in (ours, theirs))
        for name, (other,) in expected.statistics.items():
            (one,) = found.statistics[name]
            assert one.count == other.count
            # Of the tokens to keep there are more than D_in.
            assert (one.gram is None) == (other.gram is None) == one.by_image == (side == "forget")
            close(one.total, other.total)
            close(one.full_gram(), other.full_gram())
            if one.by_image:
                same_heads(one, other)
    changes, others = (porting.load_peft(run / "adapter").pairs for run in (ours, theirs))
    assert changes.keys() == others.keys()
    for name, other in others.items():
        # The signs of both factors' columns are free.
        close(changes[name].b @ changes[name].a, other.b @ other.a)


def close(ours, theirs):
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def read(path):
    return json.loads(path.read_text())


def heard(process, text, seconds=300):
    """Waits until a process says something on stderr; one that takes longer is killed."""
    clock = threading.Timer(seconds, process.kill)
    clock.start()
    said = any(text in line for line in process.stderr)
    clock.cancel()
    assert said, f"{text}: not heard in {seconds} seconds"


def on_eight_devices(check, *arguments):
    """Call a module's function where there are eight CPU devices: their number is fixed at start.

    arguments: whatever can be written out, as texts and numbers.
    """
    given = ", ".join(map(repr, arguments))
    program = f"from {check.__module__} import {check.__name__} as check\ncheck({given})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
