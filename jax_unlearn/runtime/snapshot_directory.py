"""OUT.resume: the directory of a run's snapshots, its lock, and removing it.

Its layout is OUT.resume/PROCESS-of-PROCESSES/STAGE/STEP, with the facts and a lock file in each
PROCESS-of-PROCESSES. Only what has these names is removed.
"""

import errno
import fcntl
import os
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

from jax_unlearn.runtime import processes
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import TEMPORARY

FACTS, LOCK = "facts.json", "lock"
OF_PROCESS = re.compile(r"\d+-of-(\d+)")
# Of file systems without locks, such as Lustre by default.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
# A snapshot, or one that Orbax has not completed.
STEP = re.compile(r"\d+(\..+)?")


class SnapshotDirectory:
    """The directories of the snapshots of a run (`all`) and of this process (`own`).

    Raises:
        UserError: there is something that is no snapshot, or another run is at work there.
    """

    def __init__(self, out: Path) -> None:
        whole = out.resolve()
        self.all = whole.with_name(f"{whole.name}.resume")
        self.own = self.all / f"{processes.index()}-of-{processes.count()}"
        self._lock: int | None = None
        check_snapshots(self.all)
        if self.own.is_dir():
            self.lock()

    def counts(self) -> set[int]:
        """Process counts of the runs that wrote the existing snapshots."""
        there = [path.name for path in _entries(self.all)]
        return {int(match[1]) for name in there if (match := OF_PROCESS.fullmatch(name))}

    def create(self) -> None:
        """Create this process's directory and lock it."""
        # For the owner alone: a snapshot holds means of images that may be private.
        self.all.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.own.mkdir(exist_ok=True)
        if self._lock is None:
            self.lock()

    def lock(self) -> None:
        """Lock this process's directory until the process ends or calls `release`.

        Raises:
            UserError: another process holds the lock.
        """
        self._lock = _locked(self.own)

    def release(self) -> None:
        """Let other runs use the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self, strict: bool = False) -> None:
        """Remove this process's snapshots, and the directory if that leaves it empty.

        Raises:
            OSError: with `strict`, something cannot be removed.
        """
        if self.own.exists():
            shutil.rmtree(self.own, ignore_errors=not strict)
        self.release()
        # Other processes do the same at this moment, and one of them is the first to remove it.
        with suppress(FileNotFoundError):
            if self.all.is_dir() and not any(self.all.iterdir()):
                self.all.rmdir()

    def remove_others(self) -> None:
        """Remove the snapshots of runs with other process counts.

        Raises:
            UserError: such a run is still at work.
        """
        for other in _entries(self.all):
            match = OF_PROCESS.fullmatch(other.name)
            if match and int(match[1]) != processes.count():
                lock = _locked(other)
                shutil.rmtree(other, ignore_errors=True)
                os.close(lock)


def check_snapshots(directory: Path) -> None:
    """Check that everything in OUT.resume is of snapshots; hidden files are left alone.

    Raises:
        UserError: something is not; names it.
    """
    if not os.path.lexists(directory):
        return
    _check_directory(directory)
    for path in _entries(directory):
        if path.name.startswith("."):
            continue
        _check_directory(path, OF_PROCESS)
        for inside in _entries(path):
            if inside.is_dir():
                _check_directory(inside)
                for step in _entries(inside):
                    _check_directory(step, STEP)
            elif inside.name not in (FACTS, LOCK) and not TEMPORARY.fullmatch(inside.name):
                raise _not_ours(inside)


def _entries(directory: Path) -> list[Path]:
    """The entries of a directory, which another process of the run may have removed."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _check_directory(path: Path, name: re.Pattern[str] | None = None) -> None:
    if not os.path.lexists(path):
        # Another process of the run has removed it.
        return
    if path.is_symlink() or not path.is_dir() or (name and not name.fullmatch(path.name)):
        raise _not_ours(path)


def _not_ours(path: Path) -> UserError:
    return UserError(
        f"{path}: is no snapshot of a run, and this place is for snapshots; move it away, or "
        "choose another --out"
    )


def _locked(directory: Path) -> int:
    """Lock a directory of snapshots by a file in it; returns the file's descriptor.

    A POSIX lock, which NFS has too, and which a killed process leaves behind nowhere.

    Raises:
        UserError: another process holds the lock.
    """
    path = directory / LOCK
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise UserError(
                f"{directory.parent}: another run with this --out is at work; wait until it ends, "
                "or choose another --out"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"{directory}: this file system has no locks; do not start two runs with one --out",
                stacklevel=2,
            )
        # Its last holder may have removed it in the meantime.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)
        directory.mkdir(parents=True, exist_ok=True)
