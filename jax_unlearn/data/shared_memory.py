"""Check that the batches of worker processes fit into shared memory, which containers limit."""

import os
import warnings
from collections.abc import Sequence
from heapq import nlargest
from math import ceil

from jax_unlearn.data.loader import AHEAD
from jax_unlearn.data.segments import SHARED
from jax_unlearn.runtime.errors import UserError

# Results that exist at once, as measured: for each worker, Grain fills a queue in the worker and
# one in this process, and has one more result ready for each; the consumer has a few.
PER_WORKER, CONSUMED = 2 * (AHEAD + 1), 3


def shared_bytes(sizes: Sequence[int], workers: int) -> int:
    """Most shared memory that results of these sizes take with this number of workers."""
    return sum(nlargest(PER_WORKER * workers + CONSUMED, sizes)) if workers else 0


def workers_in_shared_memory(sizes: Sequence[int], workers: int, required: bool) -> int:
    """The number of workers to use: `workers`, or 0 (threads) if shared memory is too small.

    A process that writes to shared memory when it is full is killed by the kernel without an error
    message.

    Args:
        sizes: bytes of each result.
        workers: number of processes that should be used.
        required: the user asked for this number.

    Raises:
        UserError: shared memory is too small and `required` is set.
    """
    if not (workers and SHARED.is_dir()):
        return workers
    status = os.statvfs(SHARED)
    free, needed = status.f_bavail * status.f_frsize, shared_bytes(sizes, workers)
    if needed <= free:
        return workers
    what = f"{SHARED} has {free / 1e6:.0f} MB free, and --workers {workers} may need "
    what += f"{needed / 1e6:.0f} MB"
    enlarge = f"a larger {SHARED} (docker run --shm-size={ceil(needed / 1e9)}g)"
    if required:
        raise UserError(f"{what}; use --workers 0, or {enlarge}")
    warnings.warn(f"{what}; images are decoded in threads, or give it {enlarge}", stacklevel=2)
    return 0
