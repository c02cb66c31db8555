"""A run on the trained model that is shipped, small enough to be attacked in a test."""

import pytest
from rich.console import Console

from jax_unlearn.runs.attack import AttackOptions, attacked_run
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runtime.assets import ASSETS

CLASSES = ("red triangle", "red circle", "blue circle", "astronaut")
TRAIN, TEST = 16, 12


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """A run that forgets red triangles, with 12 held-out images of each of four classes."""
    folder = tmp_path_factory.mktemp("attacked")
    for split, most in (("train", TRAIN), ("test", TEST)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for file in sorted((ASSETS / "images" / split / name).iterdir())[:most]:
                (folder / split / name / file.name).symlink_to(file)
    out = folder / "run"
    main(
        [
            "run", "--checkpoint", str(ASSETS / "checkpoint"), "--concept", "red triangle",
            "--forget", str(folder / "train"), "--preserve", str(folder / "train"),
            "--forget-held-out", str(folder / "test"), "--preserve-held-out", str(folder / "test"),
            "--out", str(out),
        ]
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def attacked(shipped):
    """The same, ready to be attacked. Attacks leave its model as it was."""
    return attacked_run(AttackOptions(shipped), read_config(shipped), Console(quiet=True))
