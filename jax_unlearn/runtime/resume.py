"""Snapshots of a run that is not finished, beside its directory, by Orbax: what `--resume` reads.

For OUT they lie in OUT.resume/PROCESS-of-PROCESSES/STAGE/STEP, and are gone when OUT is there.
"""

import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from jax_unlearn.runtime import processes
from jax_unlearn.runtime.atomic_files import USER_FIXABLE_ERRNOS, replace_files
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.snapshots import Snapshot

Facts = dict[str, Any]

FACTS = "facts.json"
OF_PROCESS = re.compile(r"\d+-of-(\d+)")
# Seconds after which an end that was asked for is asked for again.
SIGTERM_RETRY_SECONDS = 0.5
# Bytes of snapshots that the memory may hold besides what they are of.
MAX_UNSAVED_BYTES = 2**30


class TerminatedError(BaseException):
    """SIGTERM came; what had been done is saved. No fault, and so no `Exception`."""


class RunSnapshots:
    """The stages of one process of a run.

    Args:
        out: the run's directory.
        facts: what must be the same for a run that is resumed; only called if there is something
            to compare it with or to save.
        differences: explains what is not the same between two such facts, one clause each, given
            what to call the two.
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
        differences: Callable[[Facts, Facts, tuple[str, str]], list[str]],
        seconds: float,
        steps: int | None,
        resume: bool,
        overwrite: bool,
    ) -> None:
        whole = out.resolve()
        self.all = whole.with_name(f"{whole.name}.resume")
        self.directory = self.all / f"{processes.index()}-of-{processes.count()}"
        self.facts, self.differences = facts, differences
        self.seconds, self.steps = seconds, steps
        self.resume = resume
        self.terminated = self.working = False
        self.saved = time.monotonic()
        # Stages that were done before a snapshot of them was due.
        self.unsaved: dict[StageSnapshots, Snapshot] = {}
        with user_errors(self.all):
            if resume:
                self._check()
            elif overwrite:
                self._remove()
            elif self._counts():
                raise UserError(
                    f"{self.all}: an earlier run was stopped; go on with --resume, or begin again "
                    "with --overwrite alone"
                )

    def _counts(self) -> set[int]:
        """How many processes the run had that left what is there."""
        there = [path.name for path in self.all.iterdir()] if self.all.exists() else []
        return {int(match[1]) for name in there if (match := OF_PROCESS.fullmatch(name))}

    def _check(self) -> None:
        if others := self._counts() - {processes.count()}:
            count = max(others)
            raise UserError(f"{self.all}: the run had {count} processes; resume it with as many")
        path = self.directory / FACTS
        if path.is_file():
            ours = self.facts()
            try:
                changed = self.differences(json.loads(path.read_text()), ours, ("then", "now"))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{path}: is damaged ({error!r}); begin again with --overwrite alone"
                ) from error
            if changed:
                raise UserError(
                    f"--resume: {'; '.join(changed)}; go on with the same, or begin again with "
                    "--overwrite alone"
                )

    def _remove(self) -> None:
        """This process's snapshots; the first also those of other numbers of processes."""
        if self.directory.exists():
            shutil.rmtree(self.directory)
        if processes.index() == 0 and self.all.is_dir():
            for other in self.all.iterdir():
                if not other.name.endswith(f"-of-{processes.count()}"):
                    shutil.rmtree(other, ignore_errors=True)

    def heed(self) -> None:
        """End the run if SIGTERM came.

        Raises:
            TerminatedError: it did.
        """
        if self.terminated:
            raise TerminatedError

    def stage(self, name: str) -> "StageSnapshots":
        return StageSnapshots(self, name)

    def begin(self) -> None:
        """Make the directory, with what a run that goes on is compared with.

        Raises:
            UserError: the file system refuses.
        """
        with user_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / FACTS).is_file():
            replace_files(self.directory, {FACTS: json.dumps(self.facts(), indent=1)})

    def finish(self) -> None:
        """Remove the snapshots: the run is whole."""
        shutil.rmtree(self.directory, ignore_errors=True)
        # Other processes come here at the same time, and one of them is the first to remove it.
        with suppress(FileNotFoundError):
            if self.all.is_dir() and not any(self.all.iterdir()):
                self.all.rmdir()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM ends the run after the current step, which is saved.

        It is also where another process of the run is gone.

        Raises:
            TerminatedError: it came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = signal.SIGTERM, signal.SIGALRM
        before = [signal.signal(number, self._terminate) for number in numbers]
        try:
            yield
        except (TerminatedError, processes.PeerError) as error:
            # It may come again.
            self.working = True
            for stage, snapshot in [*self.unsaved.items()]:
                stage.save(snapshot)
            if self.terminated and isinstance(error, processes.PeerError):
                # The others were so too, and said so first.
                raise TerminatedError from error
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _terminate(self, _: int, __: FrameType | None) -> None:
        self.terminated = True
        if self.working:
            return
        # What is raised while a finaliser is at work, or a callback of JAX's, is lost; the alarm
        # comes here again. It is not lost where something else is closed on its way.
        signal.setitimer(signal.ITIMER_REAL, SIGTERM_RETRY_SECONDS)
        if not (processes.exchanging or isinstance(sys.exception(), TerminatedError)):
            self.heed()


class StageSnapshots:
    """A stage in a directory of its own."""

    def __init__(self, journal: RunSnapshots, name: str) -> None:
        self.journal, self.directory = journal, journal.directory / name
        self.steps = 0
        # Whether a step was taken that no snapshot has.
        self.ahead = False

    def load(self) -> Snapshot | None:
        self.journal.working = True
        with user_errors(self.directory):
            if not (self.journal.resume and self.directory.is_dir()):
                return None
            # Not at the top: it takes a second, and a short run saves nothing.
            from jax_unlearn.runtime.orbax_store import Restore, manager

            with manager(self.directory) as kept:
                for step in sorted(kept.all_steps(), reverse=True):
                    try:
                        found: Snapshot = kept.restore(step, args=Restore())
                    except (FileNotFoundError, SafetensorError, json.JSONDecodeError) as error:
                        warnings.warn(
                            f"{self.directory / str(step)} is damaged ({error}); "
                            "going on from an earlier one",
                            stacklevel=2,
                        )
                        continue
                    self.steps = step
                    return found
        return None

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        self.steps += 1
        self.ahead = True
        journal = self.journal
        due = time.monotonic() - journal.saved >= journal.seconds
        if due or journal.terminated or (journal.steps and self.steps % journal.steps == 0):
            self.save(snapshot())
        journal.heed()

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        if self.ahead:
            self.steps += 1
            self._keep(snapshot())
        self.journal.heed()
        self.journal.working = False

    def _keep(self, last: Snapshot) -> None:
        """The last snapshot in memory, if it took less than the time between two to come to it."""
        kept = (*self.journal.unsaved.values(), last)
        size = sum(array.nbytes for one in kept for array in one.arrays.values())
        if self.directory.is_dir() or size > MAX_UNSAVED_BYTES:
            self.save(last)
        else:
            self.journal.unsaved[self] = last

    def save(self, snapshot: Snapshot) -> None:
        """As the newest of this stage."""
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
    # Orbax raises what it logs.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except OSError as error:
        if error.errno not in USER_FIXABLE_ERRNOS:
            raise
        raise UserError(
            f"{directory}: {os.strerror(error.errno)}; make room or give rights, and continue with "
            "--resume"
        ) from error
    finally:
        logger.setLevel(level)
