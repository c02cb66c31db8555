"""Start, find and leave the processes of a run."""

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

from jax_unlearn.runtime.errors import UserError

# Notes with the coordinator: a process has come to a meeting; whether the meeting takes place; a
# process is about to end early.
MEETING, DECIDED, LEAVING = (f"jax_unlearn/{name}" for name in ("meeting", "decided", "leaving"))


GO, OFF = "go", "off"


# Seconds from one look for notes to the next: at first, at most.
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.01, 0.2


# Seconds until the others leave too, at most.
EXIT_TIMEOUT_SECONDS = 20


# The number of the next meeting, the same in all processes.
meetings = counter()


# Whether others are in a collective with this process, which must not end then.
exchanging = False


class PeerError(UserError):
    """Another process has failed, or is gone."""


def connect(
    coordinator: str | None, process: int | None, processes: int | None, heartbeat: int
) -> None:
    """Find the other processes; to be called before anything else of JAX's.

    Args:
        coordinator: address and port of the first process; if not given, as all three, TPU pods,
            SLURM and the like are asked.
        heartbeat: seconds without a heartbeat after which a process is declared dead; JAX then ends
            the others, wherever they are.

    Raises:
        UserError: they were not found.
    """
    # Its part of JAX would take SIGTERM, and do nothing about it.
    jax.config.update("jax_enable_preemption_service", False)
    by_hand = (coordinator, process, processes)
    if any(x is not None for x in by_hand) and None in by_hand:
        raise UserError("--coordinator, --process-id and --processes: give all three, or none")
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
            f"--distributed: the processes did not find each other ({reason}); give "
            "--coordinator HOST:PORT, --process-id and --processes"
        ) from error


def _local_devices() -> list[int] | None:
    """All, which an empty list is to JAX, where SLURM runs one task a node; else JAX's own choice.

    That is under SLURM one device for each task.
    """
    tasks, nodes = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS", "STEP_NUM_NODES"))
    return [] if tasks and tasks == nodes else None


def index() -> int:
    """Which process this is."""
    return jax.process_index()


def count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def exit_together(code: int) -> NoReturn:
    """End this process early. If the others do so too, wait for them, at most EXIT_TIMEOUT_SECONDS.

    The coordinator goes with the first, and without it the others are aborted. JAX's own end is not
    waited for: it is an abort too, where another is gone.
    """
    if count() > 1:
        # Without a coordinator there is nobody to wait for.
        with suppress(jax.errors.JaxRuntimeError):
            _await_all(LEAVING, EXIT_TIMEOUT_SECONDS)
        if index() == 0:
            # The others look every MAX_POLL_SECONDS seconds, and are then gone.
            time.sleep(5 * MAX_POLL_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def meeting() -> Iterator[None]:
    """Waits for the others, and lets the block exchange something with them.

    A signal may end this process while it waits, and another may have seen that all are there; so
    that none of them enters a collective alone, the first to say so decides for all.

    Raises:
        PeerError: another process ends instead, or is gone.
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
    """Whether a meeting takes place: this, if nobody has decided yet."""
    note, coordinator = f"{DECIDED}/{number}", _coordinator()
    with suppress(jax.errors.JaxRuntimeError):
        # It is not written over what is there.
        coordinator.key_value_set(note, what)
    found: str = coordinator.key_value_try_get(note)
    return found


def _await_all(place: str, seconds: float = inf) -> None:
    """Leave a note and look for those of the others until they are there, or so long."""
    coordinator = _coordinator()
    coordinator.key_value_set(f"{place}/{index()}", "")
    until, pause = time.monotonic() + seconds, MIN_POLL_SECONDS
    while len(coordinator.key_value_dir_get(place)) < count() and time.monotonic() < until:
        time.sleep(pause)
        pause = min(MAX_POLL_SECONDS, 2 * pause)


def _coordinator() -> Any:
    # JAX has no public name for it; Orbax and others take it from there too.
    return distributed.global_state.client
