"""Files into packed batches ahead of the device, by Grain: in threads, or in processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_unlearn.data.batches import Batch, Item
from jax_unlearn.data.images import UNREADABLE, ImageFile, open_image, read_image, reason
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.models.qwen3_vision.packing import PackedPatches, pack
from jax_unlearn.runtime.no_torch import hide_torch

T = TypeVar("T")
R = TypeVar("R")

# How many results wait for the consumer, for each process: a batch of patches is 50 MB.
AHEAD = 2
# One batch for each device; the place of each of its patches; what could not be read, with why.
# A tuple, for Grain's shared memory looks into tuples, not into classes.
Loaded = tuple[PackedPatches, list[Int[np.ndarray, " patches"]], dict[int, str]]


def load(items: Sequence[T], function: Callable[[T], R], workers: int) -> Iterator[R]:
    """`function` of every item, in their order, however many compute it.

    Args:
        items: picklable, like `function`, as each process gets a copy.
        workers: processes; with 0 the threads of this one do it.
    """
    # Not at the top: it takes half a second.
    import grain
    from absl import flags

    if not items:
        return
    source = grain.MapDataset.source(items).map(function)
    if not workers:
        threads = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        yield from source.to_iter_dataset(threads)
        return
    if not flags.FLAGS.is_parsed():
        # Grain asks for options of its own that only a program of absl's would have read.
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    yield from source.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=begin_worker)


def begin_worker(number: int, count: int) -> None:
    """Called by Grain in each of its processes."""
    # A preempted machine sends it to all processes, and the first needs these until it has saved.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    hide_torch()


def end_with_parent() -> None:
    """End this process when its parent has, which had no time to say so if it was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        # Without the exit's own steps, which may wait for a queue that nobody reads any more.
        os._exit(1)


@dataclass(frozen=True)
class CountPatches:
    """How many patches a file's image will have, from its header; or why it cannot be read."""

    preprocessor: Preprocessor

    def __call__(self, file: ImageFile) -> int | str:
        try:
            with open_image(file.source()) as image:
                return self.preprocessor.patches(image.size)
        except UNREADABLE as error:
            return reason(error)


@dataclass(frozen=True)
class PackStep:
    """Decodes, preprocesses and packs the images of a step: a batch for each device.

    A device without a batch computes the first one again. In place of an image that cannot be
    decoded stand zeros: the batch keeps the shape that was planned for it.

    Args:
        files: of the pass, by whose place in it the batches call them.
        merge, side: of the tower, see `packing.pack`.
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
        """(pixels, grid) of one image."""
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
