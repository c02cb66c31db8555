"""Barrier, all-gather and exact all-reduce between the processes of a run.

All processes run the same program, one per host, each on its own devices and images. They
communicate only here: after each pass over the images, and before and after the rest of the run.
A process that has failed reports it in the next call. Before data is exchanged the processes wait
for one another through the coordinator's key-value store, because Python handles no signal inside
a collective.
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

# Bytes sent at once, which bounds the memory that sending needs.
BLOCK = 64 * 2**20
# Bits of each part of a number to be summed: int32 then holds the sum over 2¹¹ processes.
PART = 20
# Marks an array with a value that is not finite; the exponent of a finite number is at most 1024.
NOT_FINITE = 2**20


def all_gather_bytes(value: Callable[[], bytes]) -> list[bytes]:
    """All-gather: the bytes every other process passes to the matching call, by process index.

    Args:
        value: returns the bytes of this process; not called in a run of one process.

    Returns:
        The other processes' bytes; empty in a run of one process.

    Raises:
        PeerError: another process has failed or died.
    """
    if count() == 1:
        return []
    ours = value()
    with meeting():
        sizes = _exchange_sizes(len(ours))
        gathered = [_broadcast(ours, process, size) for process, size in enumerate(sizes)]
    return [theirs for process, theirs in enumerate(gathered) if process != index()]


def all_reduce_sum(x: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """All-reduce: the sum of the arrays that all processes pass to the matching call.

    The sum is taken over integers, so it does not depend on the order of the processes, and the
    bytes a process sends and receives do not grow with their number. Each process adds an error of
    at most 2⁻⁵⁹ of the largest absolute value in any process, before float64 rounds the sum. If any
    value is not finite, the whole result is NaN.

    Args:
        x: the array of this process; the same shape in every process.

    Raises:
        PeerError: another process has failed or died.
    """
    if count() == 1:
        return x
    flat, step = x.ravel(), BLOCK // x.itemsize
    ours = _exponent(flat)
    with meeting():
        _exchange_sizes(x.nbytes)
        exponent = int(multihost_utils.process_allgather(np.int32(ours)).max())
        if exponent == NOT_FINITE:
            return np.full_like(x, np.nan)
        sums = [_total(flat[i : i + step], exponent) for i in range(0, len(flat), step)]
    return np.concatenate(sums).reshape(x.shape)


def barrier() -> None:
    """Wait until every process has called this.

    Raises:
        PeerError: another process has failed or died.
    """
    all_gather_bytes(bytes)


@contextmanager
def failing_together() -> Iterator[None]:
    """Report an error in the block to the other processes, so that none waits for this one."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        if count() > 1:
            with suppress(PeerError), meeting():
                reason = str(error).encode()
                _exchange_sizes(len(reason), reason)
        raise


def _exchange_sizes(size: int, reason: bytes | None = None) -> list[int]:
    """The number of bytes each process is about to send.

    Args:
        size: the number for this process; the length of `reason`, if given.
        reason: why this process stops; None if it goes on.

    Raises:
        PeerError: some process gave a reason; nothing else is sent then.
    """
    ours = np.array([reason is not None, *divmod(size, BLOCK)], np.int32)
    everyone = multihost_utils.process_allgather(ours).tolist()
    sizes = [blocks * BLOCK + rest for _, blocks, rest in everyone]
    reasons = [
        f"process {process} has stopped: "
        f"{_broadcast(reason or b'', process, sizes[process]).decode()}"
        for process, (failed, *_) in enumerate(everyone)
        if failed
    ]
    if reasons:
        raise PeerError("; ".join(reasons))
    return sizes


def _broadcast(value: bytes, process: int, size: int) -> bytes:
    """The `size` bytes that `process` sends to all; `value` is only used in that process."""
    ours = process == index()

    def block(first: int) -> bytes:
        length = min(BLOCK, size - first)
        array = np.frombuffer(value[first : first + length] if ours else bytes(length), np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=ours)).tobytes()

    return b"".join(map(block, range(0, size, BLOCK)))


def _exponent(x: Float64[np.ndarray, " n"]) -> int:
    """The least e with |x| < 2ᵉ for all values; NOT_FINITE if one is not finite."""
    return int(np.frexp(np.abs(x).max(initial=0))[1]) if np.isfinite(x).all() else NOT_FINITE


def _total(x: Float64[np.ndarray, " n"], exponent: int) -> Float64[np.ndarray, " n"]:
    """The sum over processes, exact in fixed point, for values below 2^exponent.

    Each value becomes an integer in three parts of PART bits, so that int32 holds their sums: TPUs
    have no float64, and a sum in float32 is rounded.
    """
    whole = np.rint(np.ldexp(x, 3 * PART - 1 - exponent)).astype(np.int64)
    low, high = 2**PART - 1, 2 * PART
    parts = np.stack([whole & low, whole >> PART & low, whole >> high]).astype(np.int32)
    mesh = Mesh(np.array(jax.devices()).reshape(count(), -1), ("processes", "devices"))
    rows = NamedSharding(mesh, PartitionSpec("processes"))
    everyone = jax.make_array_from_process_local_data(rows, parts[None])
    ones, more, most = np.asarray(added(everyone, mesh=mesh), np.float64)
    # The first two terms add up without rounding.
    whole_sum = ones + more * 2.0**PART + most * 2.0**high
    return np.ldexp(whole_sum, exponent - 3 * PART + 1)


@partial(jax.jit, static_argnames="mesh")
def added(parts: Int[Array, "processes k n"], *, mesh: Mesh) -> Int[Array, "k n"]:
    """The sum over the processes, replicated on all their devices."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(parts.sum(axis=0), everywhere)
