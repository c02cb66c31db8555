"""The processes of a run: one a host, each with devices and images of its own.

They run the same program and meet only where all of them call `of_others`: after each pass, and
before and after everything else. What one says there may also be that it has failed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_unlearn.errors import UserError

# Sent at once, so that a process needs no more than a few times a snapshot's own memory.
BLOCK = 64 * 2**20


class PeerError(UserError):
    """Another process has failed, or is gone."""


def connect(
    coordinator: str | None, process: int | None, processes: int | None, heartbeat: int
) -> None:
    """Find the other processes; to be called before anything else of JAX's.

    Args:
        coordinator: address and port of the first process; if not given, as all three, TPU pods,
            SLURM and the like are asked.
        heartbeat: seconds after which a process that is not heard of counts as gone; JAX then ends
            the others, wherever they are.

    Raises:
        UserError: they were not found.
    """
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


def of_others(value: Callable[[], bytes]) -> Iterator[bytes]:
    """What each other process gives at the same place of the program, in their order.

    To be read to its end, for they are sent while it is read.

    Args:
        value: what this one gives; not called where there are no others.

    Raises:
        PeerError: one of them has failed, or is gone.
    """
    if count() > 1:
        yield from _exchange(value(), failed=False)


def meet() -> None:
    """Wait for the others.

    Raises:
        PeerError: one of them has failed, or is gone.
    """
    for _ in of_others(bytes):
        pass


@contextmanager
def failing_together() -> Iterator[None]:
    """Tells the others of an error in the block, so that none waits for this process."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if count() > 1:
            for _ in _exchange(str(error).encode(), failed=True):
                pass
        raise


def _exchange(value: bytes, failed: bool) -> Iterator[bytes]:
    """The others' values; if any process has failed nothing but what those say of it."""
    try:
        size = divmod(len(value), BLOCK)
        sizes = multihost_utils.process_allgather(np.array([failed, *size], np.int32)).tolist()
        failures = [process for process, (has_failed, *_) in enumerate(sizes) if has_failed]
        reasons = []
        for process in failures or range(len(sizes)):
            _, blocks, rest = sizes[process]
            received = _sent(value, process, blocks * BLOCK + rest)
            if failures:
                reasons.append(f"process {process} has stopped: {received.decode()}")
            elif process != index():
                yield received
        if failures and not failed:
            raise PeerError("; ".join(reasons))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PeerError(
            f"another process of this run is gone ({reason}); start all again with --resume"
        ) from error


def _sent(value: bytes, process: int, size: int) -> bytes:
    """What one process sends; `value` if it is this one."""
    ours = process == index()

    def block(first: int) -> bytes:
        length = min(BLOCK, size - first)
        array = np.frombuffer(value[first : first + length] if ours else bytes(length), np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=ours)).tobytes()

    return b"".join(map(block, range(0, size, BLOCK)))
