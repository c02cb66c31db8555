"""Connect, synchronise and end the processes of a run."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count as counter
from math import inf
from typing import Any, NoReturn

import jax
from jax._src import distributed

from jax_unlearn.runtime.errors import StoppedError, UserError
from jax_unlearn.runtime.rendezvous import meet
from jax_unlearn.runtime.temporary_files import remove_temporary_folder

# Keys in the coordinator's store: a process has reached a meeting; whether that meeting takes
# place; a process is about to exit early.
MEETING, DECIDED, LEAVING = (f"jax_unlearn/{name}" for name in ("meeting", "decided", "leaving"))
GO, OFF = "go", "off"
# Polling of the store starts at the first interval and backs off to the second.
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.01, 0.2
# Longest wait for the other processes to exit too.
EXIT_TIMEOUT_SECONDS = 20

# The number of the next meeting, the same in all processes.
meetings = counter()
# Whether this process is in a collective with others; it must not exit during one.
exchanging = False


class PeerError(StoppedError):
    """Another process has failed or died."""


def connect(
    coordinator: str | None,
    process: int | None,
    processes: int | None,
    heartbeat: int,
    wait: float,
) -> None:
    """Connect to the other processes; must be called before any other use of JAX.

    Args:
        coordinator: HOST:PORT of process 0. Without it, `process` and `processes`, JAX detects the
            cluster (TPU pods, SLURM, ...).
        process: index of this process.
        processes: number of processes.
        heartbeat: seconds without a heartbeat after which a process is declared dead; JAX then
            aborts the other processes.
        wait: longest wait for the other processes in seconds, where they are given by hand.

    Raises:
        UserError: only some of the three are given, or the processes cannot connect (see
            `rendezvous.meet`).
    """
    # The preemption service would catch SIGTERM without stopping the run.
    jax.config.update("jax_enable_preemption_service", False)
    by_hand = (coordinator, process, processes)
    if any(x is not None for x in by_hand) and None in by_hand:
        raise UserError("--coordinator, --process-id and --processes: give all three, or none")
    if coordinator is not None and process is not None and processes is not None:
        meet(coordinator, process, processes, wait)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=_local_devices(),
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--distributed: the processes could not connect ({reason}); give "
            "--coordinator HOST:PORT, --process-id and --processes"
        ) from error


def _local_devices() -> list[int] | None:
    """An empty list (all devices) if SLURM runs one task per node; else None (JAX's choice).

    JAX's choice under SLURM is one device per task.
    """
    tasks, nodes = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS", "STEP_NUM_NODES"))
    return [] if tasks and tasks == nodes else None


def index() -> int:
    """Index of this process."""
    return jax.process_index()


def count() -> int:
    """Number of processes of the run."""
    return jax.process_count()


def exit_together(code: int) -> NoReturn:
    """Exit this process early, once the others exit too or EXIT_TIMEOUT_SECONDS have passed.

    The coordinator runs in process 0, and without it the others would be aborted. JAX's shutdown is
    skipped with `os._exit`, since it aborts as well if another process has died.
    """
    if count() > 1:
        # Raised if the coordinator is gone; then there is nothing to wait for.
        with suppress(jax.errors.JaxRuntimeError):
            _await_all(LEAVING, EXIT_TIMEOUT_SECONDS)
        if index() == 0:
            # The others poll every MAX_POLL_SECONDS seconds, and exit after that.
            time.sleep(5 * MAX_POLL_SECONDS)
        remove_temporary_folder()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def meeting() -> Iterator[None]:
    """Wait for the other processes, then run the block, which may call collectives.

    A signal may stop one process while it waits after another has already seen that all have
    arrived. So that none enters a collective alone, the first process to write GO or OFF to the
    store decides for all.

    Raises:
        PeerError: another process stops instead, or has died.
    """
    global exchanging
    number, ended = next(meetings), None
    try:
        try:
            _await_all(f"{MEETING}/{number}")
            exchanging = True
            decided = _decided(number, GO)
        except BaseException as error:
            exchanging = True
            decided, ended = _decided(number, OFF), error
        if decided == OFF:
            raise ended or PeerError("another process of this run ends; start all with --resume")
        yield
        if ended:
            raise ended
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PeerError(
            f"another process of this run is gone ({reason}); start all again with --resume"
        ) from error
    finally:
        exchanging = False


def _decided(number: int, what: str) -> str:
    """GO or OFF for a meeting: `what`, unless another process has already decided."""
    note, coordinator = f"{DECIDED}/{number}", _coordinator()
    with suppress(jax.errors.JaxRuntimeError):
        # Raised if the key exists; its value is then kept.
        coordinator.key_value_set(note, what)
    found: str = coordinator.key_value_try_get(note)
    return found


def _await_all(place: str, seconds: float = inf) -> None:
    """Write this process's key under `place`; wait until all have, at most `seconds`."""
    coordinator = _coordinator()
    coordinator.key_value_set(f"{place}/{index()}", "")
    until, pause = time.monotonic() + seconds, MIN_POLL_SECONDS
    while len(coordinator.key_value_dir_get(place)) < count() and time.monotonic() < until:
        time.sleep(pause)
        pause = min(MAX_POLL_SECONDS, 2 * pause)


def _coordinator() -> Any:
    # JAX has no public name for it; Orbax uses this one too.
    return distributed.global_state.client
