"""Snapshots of a run that is not finished, beside its directory, by Orbax: what `--resume` reads.

For OUT they lie in OUT.resume/PROCESS-of-PROCESSES/STAGE/STEP, and are gone when OUT is there.
"""

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from jax_unlearn import hosts
from jax_unlearn.errors import UserError
from jax_unlearn.files import MENDABLE, replace_files
from jax_unlearn.identity import Facts, differences
from jax_unlearn.snapshot import Snapshot, Stage

FACTS = "facts.json"
# Of each stage: the newest, and the one before until that is whole.
KEPT = 2


class TerminatedError(Exception):
    """SIGTERM came; what had been done is saved."""


class Journal:
    """The stages of one process of a run.

    Args:
        out: the run's directory.
        facts: what must be the same for a run that goes on (`identity`); only asked for if there
            is something to compare it with or to save.
        seconds: between snapshots.
        steps: batches, or chunks of epochs, between them, if that comes first.
        resume: go on from what is there; otherwise nothing may be there.
        overwrite: without `resume`, remove what is there.

    Raises:
        UserError: an earlier run was stopped and is not to be resumed, or was another one.
    """

    def __init__(
        self,
        out: Path,
        facts: Callable[[], Facts],
        seconds: float,
        steps: int | None,
        resume: bool,
        overwrite: bool,
    ) -> None:
        whole = out.resolve()
        self.all = whole.with_name(f"{whole.name}.resume")
        self.directory = self.all / f"{hosts.index()}-of-{hosts.count()}"
        self.facts, self.seconds, self.steps = facts, seconds, steps
        self.terminated = self.working = False
        self.saved = time.monotonic()
        if resume:
            self._check()
        elif overwrite and hosts.index() == 0:
            shutil.rmtree(self.all, ignore_errors=True)
        elif not overwrite and self.all.exists():
            raise UserError(
                f"{self.all}: an earlier run was stopped; go on with --resume, or begin again "
                "with --overwrite"
            )

    def _check(self) -> None:
        others = [path.name for path in self.all.iterdir()] if self.all.is_dir() else []
        if others and self.directory.name not in others:
            count = others[0].rpartition("-")[2]
            raise UserError(f"{self.all}: the run had {count} processes; resume it with as many")
        if (self.directory / FACTS).is_file():
            before = json.loads((self.directory / FACTS).read_text())
            if changed := differences(before, self.facts(), ("then", "now")):
                raise UserError(
                    f"--resume: {'; '.join(changed)}; go on with the same, or begin again with "
                    "--overwrite"
                )

    def stage(self, name: str) -> "SavedStage":
        return SavedStage(self, name)

    def begin(self) -> None:
        """Make the directory, with what a run that goes on is compared with.

        Raises:
            UserError: the file system refuses.
        """
        with mendable(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / FACTS).is_file():
            replace_files(self.directory, {FACTS: json.dumps(self.facts(), indent=1)})

    def finish(self) -> None:
        """Remove the snapshots: the run is whole."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.all.is_dir() and not any(self.all.iterdir()):
            self.all.rmdir()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM ends the run after the step it is at, which is saved.

        Raises:
            TerminatedError: it came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _terminate(self, _: int, __: FrameType | None) -> None:
        self.terminated = True
        if not self.working:
            raise TerminatedError


class SavedStage(Stage):
    """A stage in a directory of its own."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.directory = journal, journal.directory / name
        self.steps = 0

    def load(self) -> Snapshot | None:
        self.journal.working = True
        if not self.directory.is_dir():
            return None
        import orbax.checkpoint as ocp

        with self._manager() as manager:
            newest = manager.latest_step()
            if newest is None:
                return None
            found = manager.restore(
                newest,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore()
                ),
            )
        self.steps = newest
        empty = {name: np.zeros(*of) for name, of in found.facts["empty"].items()}
        return Snapshot({**found.arrays, **empty}, found.facts["facts"])

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        self.steps += 1
        journal = self.journal
        due = time.monotonic() - journal.saved >= journal.seconds
        if due or journal.terminated or (journal.steps and self.steps % journal.steps == 0):
            self._save(snapshot())
        if journal.terminated:
            raise TerminatedError

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        # What took less than the time between snapshots is not worth one.
        if self.directory.is_dir():
            self.steps += 1
            self._save(snapshot())
        self.journal.working = False

    def _save(self, snapshot: Snapshot) -> None:
        import orbax.checkpoint as ocp

        self.journal.begin()
        # Orbax saves none of these.
        empty = {
            name: (array.shape, str(array.dtype))
            for name, array in snapshot.arrays.items()
            if not array.size
        }
        arrays = {name: x for name, x in snapshot.arrays.items() if name not in empty}
        facts = {"facts": snapshot.facts, "empty": empty}
        with mendable(self.directory):
            self.directory.mkdir(exist_ok=True)
        with mendable(self.directory), self._manager() as manager:
            manager.save(
                self.steps,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts)
                ),
            )
        self.journal.saved = time.monotonic()

    def _manager(self) -> Any:
        # Not at the top: it takes a second, and a short run saves nothing.
        import orbax.checkpoint as ocp
        from orbax.checkpoint.options import MultiprocessingOptions

        here = hosts.index()
        alone = MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        )
        return ocp.CheckpointManager(self.directory, options=options)


@contextmanager
def mendable(directory: Path) -> Iterator[None]:
    """What the user can mend, as one line."""
    logger = logging.getLogger("absl")
    level = logger.level
    # Orbax raises what it logs, and logs it in every thread that sees it.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError) as error:
        code = error_number(error)
        if code not in MENDABLE:
            raise
        raise UserError(
            f"{directory}: {os.strerror(code)}; mend that and go on with --resume"
        ) from error
    finally:
        logger.setLevel(level)


def error_number(error: OSError | ValueError) -> int:
    """That of the operating system, which TensorStore has in its message only; 0 without one."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else 0
