"""Runs over a few of the shipped images on a tiny real checkpoint, through the command line."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from rich.console import Console

import porting
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.command_line import parse_run
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runtime.assets import ASSETS
from tests import warm
from tests.problems import same_heads

CLASSES = {"forget": ["red triangle"], "preserve": ["blue circle", "astronaut"]}
ANSWERED = {
    "forget": ["red triangle"],
    "preserve": ["red circle", "blue circle", "astronaut", "cat"],
}
QUIET = Console(quiet=True)
# In place of Adam, whose epochs the others refuse; LEACE has no rank either.
CLOSED_FORM = {"optimizer": "closed_form", "epochs": None}
LEACE = {"optimizer": "leace", "epochs": None, "rank": None}


def arguments(folder, out, **options):
    """The command line of a run by Adam; an option that is None is left out."""
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
        if value is not None
    )
    return ["run", *(part for flag in flags for part in flag)]


def refused(capsys, *words):
    """The one line with which the command line refuses something."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def said(capsys, *words):
    """What a command prints."""
    capsys.readouterr()
    main([*map(str, words)])
    return capsys.readouterr().out


def parse(words):
    """The settings that a command line of `run` stands for."""
    return parse_run(RunConfig, words)[0]


def source(folder, **options):
    """What a run over these folders extracts from."""
    return QwenImages(parse(arguments(folder, folder / "x", **options)), QUIET)


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
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = warm.run(["-c", program], environment, timeout=300)
    assert done.returncode == 0, done.stderr


def write_samples(path, checkpoint):
    """Copy a checkpoint, with an image processor, and a few of the shipped images to a folder."""
    # Here, since it imports torch, which a process of `on_eight_devices` does not need.
    from tests.tiny import save_processor

    shutil.copytree(checkpoint, path / "checkpoint")
    save_processor(path / "checkpoint", 256, 1024)
    write_images(path, CLASSES, 10)
    return path


def write_images(path, classes, count):
    """Copy the first shipped images of some classes to a folder for each side."""
    for side, names in classes.items():
        for name in names:
            (path / side / name).mkdir(parents=True)
            for file in sorted((ASSETS / "images" / "train" / name).iterdir())[:count]:
                shutil.copy(file, path / side / name)
