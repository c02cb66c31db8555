"""Assign images to batches, with little padding and few distinct shapes (on the host).

Images wait until they fill a batch; larger ones are placed first and smaller ones fill the gaps.
Assignment depends on the images' sizes only, so the batches of a pass are known before the first
image is decoded, and do not depend on the number of worker processes.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from jax_unlearn.models.qwen3_vision.packing import (
    SMALL_FRAME,
    batch_shape,
    ladder_length,
    place,
    short_length,
)

# Default number of patches of a batch.
PATCHES = 8192
# Shortest row of a batch of several rows; shorter ones would only add shapes.
SHORTEST = 512


@dataclass(frozen=True)
class Item:
    """An image: its index among the files of the pass, and its number of patches."""

    index: int
    patches: int


@dataclass(frozen=True)
class Batch:
    """The images that one device processes in a step, packed first-fit in this order."""

    items: list[Item]
    rows: int
    length: int

    @property
    def patches(self) -> int:
        return sum(item.patches for item in self.items)


class Pool:
    """Collects images and forms batches of them.

    Args:
        patches: number of patches of a full batch, a power of two.
        block: number of patches of a merge block.
        one_row: a batch is one row with images of all sizes, for an attention kernel that skips
            other segments; otherwise it has a power of two of rows, as long as its largest image
            needs.
    """

    def __init__(self, patches: int, block: int, one_row: bool) -> None:
        self.patches, self.block, self.one_row = patches, block, one_row
        # Waiting images by row length, before it is rounded up to whole merge blocks.
        self.waiting: dict[int, list[Item]] = defaultdict(list)

    def add(self, item: Item) -> Iterator[Batch]:
        """Add an image; yields the batches that are now complete."""
        row = self.row(item)
        if not item.patches <= row <= self.patches:
            # An image larger than a batch gets a shape of its own.
            yield Batch([item], *batch_shape([item.patches], self.block, self.one_row))
            return
        self.waiting[row].append(item)
        # Choosing among twice as many patches as fit leaves less padding.
        if sum(item.patches for item in self.waiting[row]) >= 2 * self.patches:
            yield self.next_batch(row)

    def flush(self) -> Iterator[Batch]:
        """Batches of all images that are still waiting."""
        for row in sorted(self.waiting, reverse=True):
            while self.waiting[row]:
                yield self.next_batch(row)

    def row(self, item: Item) -> int:
        """Length of the rows that an image is packed into."""
        size = item.patches
        if self.one_row:
            return self.patches if size > SMALL_FRAME else short_length(size, self.block)
        return max(SHORTEST, 1 << (size - 1).bit_length())

    def next_batch(self, row: int) -> Batch:
        """A batch of waiting images with rows of this length; smaller images fill the gaps."""
        shorter = [items for length, items in self.waiting.items() if length <= row]
        chosen: list[Item] = []
        used: list[int] = []
        for item in sorted(chain(*shorter), key=lambda item: -item.patches):
            trial = [*used]
            place([item.patches], row, trial)
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


def group_by_shape(batches: Iterator[Batch], devices: int) -> Iterator[list[Batch]]:
    """Groups of `devices` batches of one shape; the last group of a shape may be smaller."""
    waiting: dict[tuple[int, int], list[Batch]] = {}
    for batch in batches:
        group = waiting.setdefault((batch.rows, batch.length), [])
        group.append(batch)
        if len(group) == devices:
            yield waiting.pop((batch.rows, batch.length))
    yield from waiting.values()
