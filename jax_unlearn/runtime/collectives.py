"""Barrier, all-gather and exact all-reduce between the processes of a run.

Processes run the same program, one a host, each with devices and images of its own, and meet only
where all of them call one of these: after each pass, before and after everything else. A process
may report there that it has failed. Before they exchange anything they wait for one another through
the coordinator's key-value store, because a signal is not handled inside a collective.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float64, Int

from jax_unlearn.runtime.processes import PeerError, count, index, meeting

# Bytes that are sent at once, so that sending takes little memory of its own.
BLOCK = 64 * 2**20
# Bits of a part of a number to be summed: int32 then holds the sum of 2¹¹ processes.
PART = 20
# In place of an exponent; that of a finite number is at most 1024.
NOT_FINITE = 2**20


def all_gather_bytes(value: Callable[[], bytes]) -> list[bytes]:
    """What each other process gives at the same place of the program, in their order.

    Args:
        value: what this one gives; not called where there are no others.

    Raises:
        PeerError: one of them has failed, or is gone.
    """
    if count() == 1:
        return []
    ours = value()
    with meeting():
        sizes = _meet(len(ours))
        sent = [_sent(ours, process, size) for process, size in enumerate(sizes)]
    return [other for process, other in enumerate(sent) if process != index()]


def all_reduce_sum(x: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """The sum of what all processes give at the same place of the program.

    All-reduces of whole numbers: what a process sends and receives does not grow with their number,
    and the order does not matter. Each process adds an error of at most 2⁻⁵⁹ of the largest number
    of all, before float64's own rounding of the sum. Where one is not finite all are NaN.

    Args:
        x: of the same shape everywhere.

    Raises:
        PeerError: one of them has failed, or is gone.
    """
    if count() == 1:
        return x
    flat, step = x.ravel(), BLOCK // x.itemsize
    ours = _exponent(flat)
    with meeting():
        _meet(x.nbytes)
        exponent = int(multihost_utils.process_allgather(np.int32(ours)).max())
        if exponent == NOT_FINITE:
            return np.full_like(x, np.nan)
        parts = [_total(flat[i : i + step], exponent) for i in range(0, len(flat), step)]
    return np.concatenate(parts).reshape(x.shape)


def barrier() -> None:
    """Wait for the others.

    Raises:
        PeerError: one of them has failed, or is gone.
    """
    all_gather_bytes(bytes)


@contextmanager
def failing_together() -> Iterator[None]:
    """Tells the others of an error in the block, so that none waits for this process."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if count() > 1:
            with suppress(PeerError), meeting():
                reason = str(error).encode()
                _meet(len(reason), reason)
        raise


def _meet(size: int, reason: bytes | None = None) -> list[int]:
    """How many bytes each process is about to send.

    Args:
        size: what this one is; of `reason`, if it has one to stop instead.

    Raises:
        PeerError: one has; nothing else is sent then.
    """
    ours = np.array([reason is not None, *divmod(size, BLOCK)], np.int32)
    everyone = multihost_utils.process_allgather(ours).tolist()
    sizes = [blocks * BLOCK + rest for _, blocks, rest in everyone]
    reasons = [
        f"process {process} has stopped: {_sent(reason or b'', process, sizes[process]).decode()}"
        for process, (failed, *_) in enumerate(everyone)
        if failed
    ]
    if reasons:
        raise PeerError("; ".join(reasons))
    return sizes


def _sent(value: bytes, process: int, size: int) -> bytes:
    """What one process sends; `value` if it is this one."""
    ours = process == index()

    def block(first: int) -> bytes:
        length = min(BLOCK, size - first)
        array = np.frombuffer(value[first : first + length] if ours else bytes(length), np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=ours)).tobytes()

    return b"".join(map(block, range(0, size, BLOCK)))


def _exponent(x: Float64[np.ndarray, " n"]) -> int:
    """The least e for which every number is below 2ᵉ."""
    return int(np.frexp(np.abs(x).max(initial=0))[1]) if np.isfinite(x).all() else NOT_FINITE


def _total(x: Float64[np.ndarray, " n"], exponent: int) -> Float64[np.ndarray, " n"]:
    """By way of whole numbers, whose parts are few enough bits for a sum in int32.

    TPUs have no float64, and the sum of two float32 is rounded.
    """
    whole = np.rint(np.ldexp(x, 3 * PART - 1 - exponent)).astype(np.int64)
    low, high = 2**PART - 1, 2 * PART
    parts = np.stack([whole & low, whole >> PART & low, whole >> high]).astype(np.int32)
    mesh = Mesh(np.array(jax.devices()).reshape(count(), -1), ("processes", "devices"))
    rows = NamedSharding(mesh, PartitionSpec("processes"))
    everyone = jax.make_array_from_process_local_data(rows, parts[None])
    ones, more, most = np.asarray(added(everyone, mesh=mesh), np.float64)
    # The first two add up without rounding.
    whole_sum = ones + more * 2.0**PART + most * 2.0**high
    return np.ldexp(whole_sum, exponent - 3 * PART + 1)


@partial(jax.jit, static_argnames="mesh")
def added(parts: Int[Array, "processes k n"], *, mesh: Mesh) -> Int[Array, "k n"]:
    """The sum over the processes, on the devices of all of them."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(parts.sum(axis=0), everywhere)
