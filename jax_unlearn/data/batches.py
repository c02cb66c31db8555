"""Which images share a batch: as little padding as possible in as few shapes as possible (host).

Images wait until they fill a batch; larger ones are placed first and smaller ones fill the gaps.
Only their sizes are looked at, so the batches of a pass are known before the first image is decoded
and are the same however many processes decode them.
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

# Slots of a batch, if nothing else is asked for.
PATCHES = 8192
# Shorter rows would only make more shapes.
SHORTEST = 512


@dataclass(frozen=True)
class Item:
    """An image by its number among the pass's files, and how many patches it has."""

    index: int
    patches: int


@dataclass(frozen=True)
class Batch:
    """What one call of the tower takes of a device: the images, first fit in this order."""

    items: list[Item]
    rows: int
    length: int

    @property
    def patches(self) -> int:
        return sum(item.patches for item in self.items)


class Pool:
    """Images that wait for their batch.

    Args:
        patches: slots of a full batch, a power of two.
        block: patches of a merge block.
        one_row: a batch is one row that all sizes share, for an attention that skips what is
            foreign; otherwise its rows are a power of two, as long as its largest image needs.
    """

    def __init__(self, patches: int, block: int, one_row: bool) -> None:
        self.patches, self.block, self.one_row = patches, block, one_row
        # By the length of their rows, before it is rounded to whole merge blocks.
        self.waiting: dict[int, list[Item]] = defaultdict(list)

    def add(self, item: Item) -> Iterator[Batch]:
        """Take an image in; give the batches that it makes ready."""
        row = self.row(item)
        if not item.patches <= row <= self.patches:
            # Larger than a batch: it gets a shape of its own.
            yield Batch([item], *batch_shape([item.patches], self.block, self.one_row))
            return
        self.waiting[row].append(item)
        # Twice as many as fit leave a choice.
        if sum(item.patches for item in self.waiting[row]) >= 2 * self.patches:
            yield self.take(row)

    def rest(self) -> Iterator[Batch]:
        """All that still wait."""
        for row in sorted(self.waiting, reverse=True):
            while self.waiting[row]:
                yield self.take(row)

    def row(self, item: Item) -> int:
        """Length of the rows that an image waits for."""
        size = item.patches
        if self.one_row:
            return self.patches if size > SMALL_FRAME else short_length(size, self.block)
        return max(SHORTEST, 1 << (size - 1).bit_length())

    def take(self, row: int) -> Batch:
        """A batch of those that wait for rows of this length; shorter ones fill the gaps."""
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


def together(batches: Iterator[Batch], devices: int) -> Iterator[list[Batch]]:
    """Batches of one shape, one for each device; in the end fewer."""
    waiting: dict[tuple[int, int], list[Batch]] = {}
    for batch in batches:
        alike = waiting.setdefault((batch.rows, batch.length), [])
        alike.append(batch)
        if len(alike) == devices:
            yield waiting.pop((batch.rows, batch.length))
    yield from waiting.values()
