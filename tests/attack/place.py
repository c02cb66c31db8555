"""The files that the families of hostile inputs work on."""

import shutil
from pathlib import Path
from unittest.mock import patch

from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.resume import StageSnapshots
from tests.attack.families import STOPPED, Place, fit_again


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
    return place
