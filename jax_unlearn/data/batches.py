"""Which images share a batch: as little padding as possible in as few shapes as possible (host).

Images wait until they fill a batch; larger ones are placed first and smaller ones fill the gaps.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from jaxtyping import Float, Int
from numpy import ndarray

from jax_unlearn.data.packing import (
    SMALL,
    batch_shape,
    first_fit,
    frame_sizes,
    ladder_length,
    place,
    short_length,
)

# Shorter rows would only make more shapes.
SHORTEST = 512


@dataclass(frozen=True)
class Item:
    """One preprocessed image or video, and its number among the run's files."""

    index: int
    pixels: Float[ndarray, "patches patch"]
    grid: Int[ndarray, "1 3"]

    @property
    def frames(self) -> list[int]:
        return frame_sizes(self.grid)


@dataclass(frozen=True)
class Batch:
    """What one call of the tower takes: the images' frames, first fit in this order."""

    items: list[Item]
    rows: int
    length: int

    @property
    def patches(self) -> int:
        return sum(len(item.pixels) for item in self.items)


class Pool:
    """Images that wait for their batch.

    Args:
        patches: slots of a full batch, a power of two.
        block: patches of a merge block.
        one_row: a batch is one row that all sizes share, for an attention that skips what is
            foreign; otherwise its rows are a power of two, as long as its largest frame needs.
    """

    def __init__(self, patches: int, block: int, one_row: bool) -> None:
        self.patches, self.block, self.one_row = patches, block, one_row
        # By the length of their rows, before it is rounded to whole merge blocks.
        self.waiting: dict[int, list[Item]] = defaultdict(list)

    def add(self, item: Item) -> Iterator[Batch]:
        """Take an image in; give the batches that it makes ready."""
        row = self.row(item)
        if not self.fits(item.frames, row):
            # Larger than a batch: it gets a shape of its own.
            yield Batch([item], *batch_shape(item.frames, self.block, self.one_row))
            return
        self.waiting[row].append(item)
        # Twice as many as fit leave a choice.
        if sum(len(item.pixels) for item in self.waiting[row]) >= 2 * self.patches:
            yield self.take(row)

    def rest(self) -> Iterator[Batch]:
        """All that still wait."""
        for row in sorted(self.waiting, reverse=True):
            while self.waiting[row]:
                yield self.take(row)

    def row(self, item: Item) -> int:
        """Length of the rows that an image waits for."""
        largest = max(item.frames)
        if self.one_row:
            return self.patches if largest > SMALL else short_length(largest, self.block)
        return max(SHORTEST, 1 << (largest - 1).bit_length())

    def fits(self, frames: list[int], row: int) -> bool:
        """Whether a batch of rows of this length holds the frames."""
        return max(frames) <= row <= self.patches and (
            first_fit(frames, row)[1] <= self.patches // row
        )

    def take(self, row: int) -> Batch:
        """A batch of those that wait for rows of this length; shorter ones fill the gaps."""
        shorter = [items for length, items in self.waiting.items() if length <= row]
        chosen: list[Item] = []
        used: list[int] = []
        for item in sorted(chain(*shorter), key=lambda item: -len(item.pixels)):
            trial = [*used]
            place(item.frames, row, trial)
            if len(trial) <= self.patches // row:
                chosen.append(item)
                used = trial
        taken = {item.index for item in chosen}
        for length, items in self.waiting.items():
            self.waiting[length] = [item for item in items if item.index not in taken]
        if self.one_row and row == self.patches:
            return Batch(chosen, 1, ladder_length(sum(used), self.block))
        length = row if self.one_row else ladder_length(row, self.block)
        return Batch(chosen, 1 << (len(used) - 1).bit_length(), length)
