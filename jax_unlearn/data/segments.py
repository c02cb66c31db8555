"""Results of worker processes in shared memory that is freed even if a worker is killed.

Grain's shared memory is freed by whoever receives a result. What a killed worker had ready stays
until the process has ended, when Python frees it with a warning. Here the names begin with a prefix
that the parent knows.
"""

import mmap
import pickle
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

# Where Linux has POSIX shared memory as files; other systems do not limit it like this.
SHARED = Path("/dev/shm")
# Arrays begin at multiples of this number of bytes, as devices want them.
ALIGNMENT = 64


@dataclass(frozen=True)
class Segment:
    """A result whose arrays are in shared memory.

    Args:
        name: of the shared memory.
        sizes: bytes of each array.
        pickled: the result without the content of its arrays.
    """

    name: str
    sizes: Sequence[int]
    pickled: bytes

    def open(self) -> Any:
        """The result. Its memory has no name any more, and is freed with the last array."""
        path = SHARED / self.name
        with path.open("r+b") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0))
        free(path)
        arrays = [memory[place] for place in places(self.sizes)]
        return pickle.loads(self.pickled, buffers=arrays)


def write_segment(result: object, prefix: str) -> Segment:
    """Copy a picklable result into shared memory, under a name with this prefix."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(result, 5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    sizes = [view.nbytes for view in views]
    name = prefix + secrets.token_hex(8)
    whole = max(1, sum(map(padded, sizes)))
    memory = SharedMemory(name, create=True, size=whole)
    target = np.ndarray(whole, np.uint8, memory.buf)
    for place, view in zip(places(sizes), views, strict=True):
        target[place] = view
    memory.close()
    return Segment(name, sizes, pickled)


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def places(sizes: Sequence[int]) -> list[slice]:
    """Where arrays of these sizes are in a segment."""
    starts = accumulate(map(padded, sizes), initial=0)
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def new_prefix() -> str:
    """A prefix of names that no other call returns."""
    return f"jax-unlearn-{secrets.token_hex(8)}-"


def free_segments(prefix: str) -> None:
    """Free what was not opened, once nothing writes segments with this prefix any more."""
    for path in SHARED.glob(f"{prefix}*"):
        free(path)


def free(path: Path) -> None:
    """Remove a segment's name, here and from what Python frees at the end of the process."""
    try:
        path.unlink()
    except FileNotFoundError:
        # Workers without a parent do this at the same time.
        return
    # A process that was killed in between may not have registered it.
    resource_tracker.register(f"/{path.name}", "shared_memory")
    resource_tracker.unregister(f"/{path.name}", "shared_memory")
