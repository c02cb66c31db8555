"""Snapshots of an unfinished run, from which `--resume` continues.

For OUT they are in OUT.resume/PROCESS-of-PROCESSES/STAGE/STEP, written by Orbax; they are removed
once OUT is complete.
"""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from jax_unlearn.runtime import interrupts, processes
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.digests import read_sealed, sealed
from jax_unlearn.runtime.errors import StoppedError, UserError
from jax_unlearn.runtime.file_errors import CURES, number_of
from jax_unlearn.runtime.interrupts import handled, would_be_lost
from jax_unlearn.runtime.snapshot_directory import FACTS, SnapshotDirectory
from jax_unlearn.runtime.snapshots import DamagedError, Snapshot

Facts = dict[str, Any]

# Largest total size in bytes of the snapshots of finished stages that are kept in memory.
MAX_UNSAVED_BYTES = 2**30


class TerminatedError(BaseException):
    """The run was stopped by a signal, SIGTERM or SIGINT; what was done is saved, if anything was.

    A BaseException, so that code that handles errors does not catch it.

    Attributes:
        number: the signal.
        saved: whether there are snapshots from which `--resume` continues.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number, self.saved = number, False


class RunSnapshots:
    """The snapshots of one process of a run, by stage.

    Args:
        out: the run's directory.
        facts: returns what must be equal for a run to be resumed; only called to compare with
            saved facts, or to save them.
        differences: describes how two such facts differ, one clause per difference; its last
            argument is what to call the two, such as ("then", "now").
        seconds: seconds between snapshots.
        steps: batches, or chunks of epochs, between snapshots, if that comes first.
        resume: continue from existing snapshots; otherwise there may be none.
        overwrite: without `resume`, remove existing snapshots.

    Raises:
        UserError: there are snapshots of a stopped run and `resume` is not set, or they are of a
            run with other facts.
    """

    def __init__(
        self,
        out: Path,
        facts: Callable[[], Facts],
        differences: Callable[[Facts, Facts, tuple[str, str]], list[str]],
        seconds: float,
        steps: int | None,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.facts, self.differences = facts, differences
        self.seconds, self.steps = seconds, steps
        self.resume = resume
        self.terminated = self.working = False
        self.signal: int = signal.SIGTERM
        self.saved = time.monotonic()
        # Last snapshots of stages that finished before a snapshot was due.
        self.unsaved: dict[StageSnapshots, Snapshot] = {}
        # The stage that has begun, which has steps that are not saved.
        self.at_work: StageSnapshots | None = None
        with user_errors(out.with_name(f"{out.name}.resume")):
            self.place = SnapshotDirectory(out)
            if resume:
                self._check()
            elif overwrite:
                self._begin_again()
            elif self.place.counts():
                raise UserError(
                    f"{self.place.all}: an earlier run was stopped; continue it with --resume, "
                    "or start again with --overwrite alone"
                )

    def _check(self) -> None:
        if others := self.place.counts() - {processes.count()}:
            count = max(others)
            raise UserError(
                f"{self.place.all}: the run had {count} processes; resume it with the same number"
            )
        path = self.place.own / FACTS
        if path.is_file():
            try:
                theirs = read_sealed(path)
            except UserError as error:
                raise UserError(
                    f"{path}: is damaged, or of an earlier version; start again with --overwrite "
                    "alone"
                ) from error
            changed = self.differences(theirs, self.facts(), ("then", "now"))
            if changed:
                raise UserError(
                    f"--resume: {'; '.join(changed)}; continue with the same settings and files, "
                    "or start again with --overwrite alone"
                )

    def _begin_again(self) -> None:
        """Remove this process's snapshots; process 0 also those of other process counts."""
        self.place.remove(strict=True)
        if processes.index() == 0:
            self.place.remove_others()

    def heed(self) -> None:
        """Stop the run if SIGTERM or SIGINT was received.

        Raises:
            TerminatedError: one of them was received.
        """
        if self.terminated:
            raise TerminatedError(self.signal)

    def stage(self, name: str) -> "StageSnapshots":
        return StageSnapshots(self, name)

    def begin(self) -> None:
        """Create the directory, with the facts that a resumed run is compared with.

        Raises:
            UserError: the file system refuses.
        """
        with user_errors(self.place.own):
            self.place.create()
        if not (self.place.own / FACTS).is_file():
            replace_files(self.place.own, {FACTS: sealed(self.facts())})

    def finish(self) -> None:
        """Remove the snapshots of this process; the run is complete."""
        self.place.remove()

    def close(self) -> None:
        """Let other runs use the snapshots."""
        self.place.release()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, SIGTERM and SIGINT stop the run after the current step, which is saved.

        What was done is also saved if another process, or one that decodes images, dies.

        Raises:
            TerminatedError: one of the signals was received.
        """
        with handled(self._terminate, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            try:
                yield
            except BaseException as error:
                refused = isinstance(error, UserError) and not isinstance(error, StoppedError)
                if refused or not (self.terminated or isinstance(error, StoppedError)):
                    raise
                # A signal may come again; it must not interrupt saving.
                self.working = True
                self._save_all()
                if not self.terminated:
                    raise
                ended = (
                    error if isinstance(error, TerminatedError) else TerminatedError(self.signal)
                )
                ended.saved = bool(self.place.counts())
                if ended is error:
                    raise
                # Another process received it too and reported it first, or compiled code turned
                # the exception into an error of its own.
                raise ended from error

    def _save_all(self) -> None:
        """Save what was done since the last snapshots."""
        for stage, snapshot in [*self.unsaved.items()]:
            stage.save(snapshot)
        if self.at_work and self.at_work.ahead:
            self.at_work.save(self.at_work.newest())

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        if number != signal.SIGALRM:
            self.signal = number
        if self.working:
            return
        # The alarm calls this handler again if the exception is lost.
        signal.setitimer(signal.ITIMER_REAL, interrupts.RETRY_SECONDS)
        ended = isinstance(sys.exception(), TerminatedError)
        if not (processes.exchanging or ended or would_be_lost(frame)):
            self.heed()


class StageSnapshots:
    """The snapshots of one stage, in a directory of its own; a `snapshots.Stage`."""

    def __init__(self, journal: RunSnapshots, name: str) -> None:
        self.journal, self.directory = journal, journal.place.own / name
        self.steps = 0
        # Whether there are steps since the last snapshot, and what makes a snapshot of them.
        self.ahead = False
        self.newest: Callable[[], Snapshot]

    def load(self) -> Snapshot | None:
        self.journal.working = True
        with user_errors(self.directory):
            if not (self.journal.resume and self.directory.is_dir()):
                return None
            # Imported here because it takes a second, and a short run saves nothing.
            from jax_unlearn.runtime.orbax_store import Restore, manager

            with manager(self.directory) as kept:
                for step in sorted(kept.all_steps(), reverse=True):
                    try:
                        found: Snapshot = kept.restore(step, args=Restore())
                    except (FileNotFoundError, DamagedError) as error:
                        warnings.warn(
                            f"{self.directory / str(step)} is damaged ({error}); "
                            "continuing from the one before, if there is one",
                            stacklevel=2,
                        )
                        continue
                    self.steps = step
                    return found
        return None

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        self.steps += 1
        self.ahead, self.newest = True, snapshot
        journal = self.journal
        journal.at_work = self
        due = time.monotonic() - journal.saved >= journal.seconds
        if due or journal.terminated or (journal.steps and self.steps % journal.steps == 0):
            self.save(snapshot())
        journal.heed()

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        if self.ahead:
            self.steps += 1
            self._keep(snapshot())
        self.journal.at_work = None
        self.journal.heed()
        self.journal.working = False

    def _keep(self, last: Snapshot) -> None:
        """Keep the last snapshot in memory if the stage was shorter than the save interval."""
        kept = (*self.journal.unsaved.values(), last)
        size = sum(array.nbytes for one in kept for array in one.arrays.values())
        if self.directory.is_dir() or size > MAX_UNSAVED_BYTES:
            self.save(last)
        else:
            self.journal.unsaved[self] = last

    def save(self, snapshot: Snapshot) -> None:
        """Write the newest snapshot of this stage to disk."""
        from jax_unlearn.runtime.orbax_store import Save, manager

        self.journal.begin()
        with user_errors(self.directory):
            self.directory.mkdir(exist_ok=True)
            with manager(self.directory) as kept:
                kept.save(self.steps, args=Save(snapshot))
        self.journal.saved, self.ahead = time.monotonic(), False
        self.journal.unsaved.pop(self, None)


@contextmanager
def user_errors(directory: Path) -> Iterator[None]:
    """Turn an error of the file system that a user can fix into a UserError."""
    logger = logging.getLogger("absl")
    level = logger.level
    # Orbax also raises the errors that it logs.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (number := number_of(error)) is None:
            raise
        raise UserError(
            f"{directory}: {os.strerror(number)}; {CURES.get(number, 'fix it')}, and continue with "
            "--resume"
        ) from error
    finally:
        logger.setLevel(level)
