"""Throughput, padding and idle time of a pass, and the number of workers it should have."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jax import Array

from jax_unlearn.data.batches import Batch

MOST_WORKERS = 8
# Patches of a pass (128 images of one megapixel) per decoding process. With fewer, starting a
# process takes longer than it saves: on two busy cores the passes over the demo's 1,480 training
# images took 33 s with two processes and 6 s with none.
PER_WORKER = 2**19


@dataclass
class Work:
    """Counters of this process's passes of the tower.

    Attributes:
        patches: patches of images.
        slots: patches computed, with padding.
        shapes: batch shapes, each compiled once.
        images: images processed.
        seconds: duration of the passes.
        waited: seconds during which the devices were idle because no batch was ready.
    """

    patches: int = 0
    slots: int = 0
    shapes: set[tuple[int, int]] = field(default_factory=set)
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, batches: Sequence[Batch], devices: int) -> None:
        rows, length = batches[0].rows, batches[0].length
        self.images += sum(len(batch.items) for batch in batches)
        self.patches += sum(batch.patches for batch in batches)
        self.slots += devices * rows * length
        self.shapes.add((rows, length))

    def metrics(self) -> dict[str, int | float]:
        """The counters for metrics.json; padding is a share of slots, waiting a share of time."""
        return {
            "images": self.images,
            "patches": self.patches,
            "padding": 1 - self.patches / max(self.slots, 1),
            "compilations": len(self.shapes),
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            "waiting": self.waited / self.seconds if self.seconds else 0.0,
        }


def ready_at(taps: dict[str, Array]) -> float:
    """Wait for the arrays; returns `time.perf_counter()` when they are ready."""
    jax.block_until_ready(taps)
    return time.perf_counter()


def usual_workers(patches: int) -> int:
    """Default number of processes that decode the images of a pass of `patches` patches.

    0 on a CPU, where the tower needs the cores; otherwise one per PER_WORKER patches, at most the
    number of cores and MOST_WORKERS.
    """
    if jax.default_backend() == "cpu":
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)), patches // PER_WORKER)
