"""Images a second, padding and waiting of a pass, and how many workers it should have."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jax import Array

from jax_unlearn.data.batches import Batch

MOST_WORKERS = 8


# Patches in a pass, 128 images of a megapixel, for each process that decodes them. With less to do
# it takes longer to start: on two busy cores the passes of the demo's 1,480 images to train on took
# 33 s with two processes and 6 s with none.
PER_WORKER = 2**19


@dataclass
class Work:
    """What this process's passes of the tower came to.

    patches of images, slots computed for them, shapes compiled; images, seconds, and of these those
    in which the devices had nothing to do, as the next images were not there.
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
        """padding: share of the slots that held no patch; waiting: share of the seconds."""
        return {
            "images": self.images,
            "patches": self.patches,
            "padding": 1 - self.patches / max(self.slots, 1),
            "compilations": len(self.shapes),
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            "waiting": self.waited / self.seconds if self.seconds else 0.0,
        }


def ready_at(taps: dict[str, Array]) -> float:
    """When they are, by `time.perf_counter`."""
    jax.block_until_ready(taps)
    return time.perf_counter()


def usual_workers(patches: int) -> int:
    """Processes that decode a pass of so many patches.

    None on a CPU, where the tower needs the cores; elsewhere as many as are worth their start, up
    to 8.
    """
    if jax.default_backend() == "cpu":
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)), patches // PER_WORKER)
