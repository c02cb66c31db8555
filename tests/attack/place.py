"""The files that the families of hostile inputs work on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from jax_unlearn.runs.cli import main
from jax_unlearn.runs.ledger.chain import read_chain
from jax_unlearn.runtime.resume import StageSnapshots
from tests.attack.outcomes import Attack

Attacks = Iterator[Attack]
# Of the stopped run.
STOPPED = ["--optimizer", "adam", "--epochs", "60", "--chunk", "10", "--rank", "2"]


@dataclass(frozen=True)
class Place:
    """What the families work on.

    checkpoint: a checkpoint of their own, which they change.
    images: a folder with forget/ and preserve/; only read.
    run: a finished run; only read.
    stopped: OUT.resume of a stopped run and the command that made it; only read.
    whole: the same run, not stopped.
    attacked: a run that was attacked and certified; only read.
    ledger: a ledger with two requests, of which one was withdrawn and added again; only read.
    solved: its run; only read.
    scratch: an empty folder.
    """

    checkpoint: Path
    images: Path
    run: Path
    stopped: Path
    whole: Path
    attacked: Path
    ledger: Path
    solved: Path
    scratch: Path

    @property
    def out(self) -> Path:
        return self.scratch / "out"


def fit_again(place: Place, statistics: Path, *more: str) -> list[str]:
    return ["run", "--statistics", str(statistics), "--out", str(place.out), *more]


@contextmanager
def own_copy(path: Path, place: Place) -> Iterator[Path]:
    copy = place.scratch / f"copy of {path.name}"
    shutil.copytree(path, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def prepare(images: Path, run: Path, scratch: Path) -> Place:
    """Copy the checkpoint, and make a run on `run`'s statistics twice: stopped, and whole.

    images: a folder with checkpoint/, forget/ and preserve/.
    """
    place = Place(
        checkpoint=shutil.copytree(images / "checkpoint", scratch / "checkpoint"),
        images=images,
        run=run,
        stopped=scratch / "stopped.resume",
        whole=scratch / "whole",
        attacked=scratch / "attacked",
        ledger=scratch / "ledger",
        solved=scratch / "solved",
        scratch=scratch / "scratch",
    )
    place.scratch.mkdir()
    command = fit_again(place, run, *STOPPED)
    step, taken = StageSnapshots.step, []

    def stop(stage, snapshot):
        taken.append(stage)
        stage.journal.terminated = len(taken) == 4
        step(stage, snapshot)

    with patch.object(StageSnapshots, "step", stop):
        try:
            main([*command, "--save-steps", "1"])
        except SystemExit:
            place.out.with_name("out.resume").rename(place.stopped)
    main(command)
    place.out.rename(place.whole)
    shutil.copytree(run, place.attacked)
    main(["attack", str(place.attacked), "--kinds", "readers"])
    main(["certify", str(place.attacked)])
    write_ledger(place)
    return place


def write_ledger(place: Place) -> None:
    directory = str(place.ledger)
    preserve = ["--checkpoint", str(place.checkpoint), "--preserve", str(place.images / "preserve")]
    small = ["--rank", "1", "--iterations", "20", "--max-pixels", "512"]
    main(["ledger", "init", directory, *preserve, *small])
    images = ["--images", str(place.images / "forget")]
    main(["ledger", "add", directory, "--concept", "red triangle", *images])
    main(["ledger", "add", directory, "--concept", "blue"])
    (added,) = [one for one in read_chain(place.ledger) if one.what.get("concept") == "blue"]
    main(["ledger", "undo", directory, added.id])
    main(["ledger", "add", directory, "--concept", "blue"])
    main(["ledger", "solve", directory, "--out", str(place.solved)])
