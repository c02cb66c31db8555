"""Runs over a few of the shipped images on a tiny real checkpoint, through the command line."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

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
