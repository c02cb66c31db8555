"""Load files into packed batches ahead of the device, in threads, or in processes of Grain."""

import multiprocessing
import os
import pickle
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_unlearn.data.batches import Batch, Item
from jax_unlearn.data.images import UNREADABLE, ImageFile, open_image, read_image, reason
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.data.segments import SHARED, Segment, free_segments, new_prefix, write_segment
from jax_unlearn.models.qwen3_vision.packing import PackedPatches, pack
from jax_unlearn.runtime.errors import StoppedError
from jax_unlearn.runtime.interrupts import blocked
from jax_unlearn.runtime.temporary_files import temporary_folder

T = TypeVar("T")
R = TypeVar("R")

# Results that each process prefetches; a batch of patches is 50 MB.
AHEAD = 2
# What Grain says of a process that it lost.
DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
# One batch per device; the slots of each batch's patches; the reason by index for every file that
# cannot be read.
Loaded = tuple[PackedPatches, list[Int[np.ndarray, " patches"]], dict[int, str]]


def load(items: Sequence[T], function: Callable[[T], R], workers: int) -> Generator[R, None, None]:
    """Yield `function` of every item, in order, computed ahead of the consumer.

    Args:
        items: picklable, like `function`, since each process gets a copy.
        workers: number of processes; 0 uses threads of this process.

    Raises:
        StoppedError: one of the processes has died.
    """
    if not items:
        return
    if not workers:
        yield from in_threads(items, function)
        return
    # Imported here because it takes half a second, which a run without processes need not wait.
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags, which only an absl program would have parsed.
        flags.FLAGS.mark_as_parsed()
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    prefix = new_prefix()
    task = Task(temporary_folder() / f"{prefix}task.pickle", prefix)
    task.path.write_bytes(pickle.dumps((items, function)))
    dataset = grain.MapDataset.range(len(items)).map(task).to_iter_dataset(no_threads)
    begin = partial(begin_worker, prefix)
    iterator = iter(dataset.mp_prefetch(options, worker_init_fn=begin))
    try:
        while True:
            # Ctrl-C reaches all processes; those that are started here never get it.
            with blocked(signal.SIGINT):
                result = next(iterator)
                result = result.open() if isinstance(result, Segment) else result
            yield result
    except StopIteration:
        return
    except RuntimeError as error:
        if not (match := DIED.search(str(error))):
            raise
        raise StoppedError(
            f"--workers {workers}: a process that decodes images has died ({cause_of(match[1])}); "
            "continue with --resume, with fewer --workers if memory was short"
        ) from error
    finally:
        try:
            iterator.close()
        finally:
            task.path.unlink()
            free_segments(prefix)


def in_threads(items: Sequence[T], function: Callable[[T], R]) -> Generator[R, None, None]:
    """Yield `function` of every item, in order, of which AHEAD are computed before they are taken.

    What is not computed yet when the consumer stops never is.
    """
    pool = ThreadPoolExecutor(AHEAD)
    try:
        waiting = deque(pool.submit(function, item) for item in items[:AHEAD])
        for item in items[AHEAD:]:
            result = waiting.popleft().result()
            waiting.append(pool.submit(function, item))
            yield result
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Task:
    """What a worker process does with the item of an index.

    Items and function are in a file: Python waits for ever if a process is killed before it has
    read what it was started with, unless that fits into a pipe.

    Args:
        path: a file with both, pickled.
        prefix: of the names in shared memory.
    """

    path: Path
    prefix: str

    def __call__(self, index: int) -> object:
        items, function = read_task(self.path)
        result = function(items[index])
        # Where shared memory cannot be listed, Grain's is used.
        return write_segment(result, self.prefix) if SHARED.is_dir() else result


@cache
def read_task(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def cause_of(exit_code: str) -> str:
    """The signal that ended a process, or its exit code."""
    code = int(exit_code)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def begin_worker(prefix: str, number: int, count: int) -> None:
    """Set up a worker process; called by Grain in each of them, with its number."""
    # A preempted machine sends SIGTERM to all processes, but the main process needs its workers
    # until it has saved a snapshot.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=[prefix], daemon=True).start()


def end_with_parent(prefix: str) -> None:
    """Exit when the parent process ends, even if it was killed, and free its shared memory."""
    if parent := multiprocessing.parent_process():
        parent.join()
        free_segments(prefix)
        # sys.exit might wait for a queue that is no longer read.
        os._exit(1)


@dataclass(frozen=True)
class CountPatches:
    """The number of patches of a file's image, from its header; or why it cannot be read."""

    preprocessor: Preprocessor

    def __call__(self, file: ImageFile) -> int | str:
        try:
            with open_image(file.source()) as image:
                return self.preprocessor.patches(image.size)
        except UNREADABLE as error:
            return reason(error)


@dataclass(frozen=True)
class PackStep:
    """Decodes, preprocesses and packs the images of a step, one batch per device.

    A device without a batch repeats the first one. An image that cannot be decoded is replaced by
    zeros, so that its batch keeps the planned shape.

    Args:
        files: the files of the pass; batches refer to them by index.
        merge: side of the tower's merge block (see `packing.pack`).
        side: side of the tower's position table.
        devices: number of devices.
    """

    files: Sequence[ImageFile]
    preprocessor: Preprocessor
    merge: int
    side: int
    devices: int

    def __call__(self, batches: Sequence[Batch]) -> Loaded:
        failed: dict[int, str] = {}
        packed, slots = zip(*(self.pack(batch, failed) for batch in batches), strict=True)
        rows = [*packed, *[packed[0]] * (self.devices - len(packed))]
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
        return whole, list(slots), failed

    def size(self, batches: Sequence[Batch]) -> int:
        """Number of bytes of the packed arrays of a step."""
        # Beside its pixels, a patch has 2 coordinates, and 4 indices and 4 weights in the position
        # table; a row has its number of patches. Each is of 4 bytes.
        patch = self.preprocessor.patch_dim + 2 + 4 + 4
        return 4 * self.devices * batches[0].rows * (batches[0].length * patch + 1)

    def pack(
        self, batch: Batch, failed: dict[int, str]
    ) -> tuple[PackedPatches, Int[np.ndarray, " patches"]]:
        images = [self.read(item, failed) for item in batch.items]
        return pack(
            np.concatenate([pixels for pixels, _ in images]),
            np.concatenate([grid for _, grid in images]),
            merge=self.merge,
            side=self.side,
            rows=batch.rows,
            length=batch.length,
        )

    def read(
        self, item: Item, failed: dict[int, str]
    ) -> tuple[Float[np.ndarray, "patches patch"], Int[np.ndarray, "1 3"]]:
        """(pixels, grid) of one image; records the reason in `failed` if it cannot be read."""
        try:
            pixels, grid = self.preprocessor(read_image(self.files[item.index].source()))
            if len(pixels) != item.patches:
                raise ValueError(f"has {len(pixels)} patches, and {item.patches} by its header")
            return pixels, grid
        except UNREADABLE as error:
            failed[item.index] = reason(error)
        size = self.preprocessor.patch_dim
        grid = np.array([[1, self.merge, item.patches // self.merge]])
        return np.zeros((item.patches, size), np.float32), grid
