"""Assign images to batches, with little padding and few distinct shapes (on the host).

Assignment depends on the images' sizes, in this pass and the ones before it, and on what compiling
costs. So the batches of a pass are known before the first image is decoded, and do not depend on
the number of worker processes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jax_unlearn.models.qwen3_vision.packing import row_count, row_length, shared_lengths

# Default number of patches of a batch.
PATCHES = 8192
# Shapes of a run from which on a batch that is not full takes a known one of its length.
MOST_SHAPES = 12


@dataclass(frozen=True)
class Item:
    """An image: its index among the files of the pass, and its number of patches."""

    index: int
    patches: int


@dataclass(frozen=True)
class Batch:
    """The images that one device processes in a step, one in each of the first rows."""

    items: list[Item]
    rows: int
    length: int

    @property
    def patches(self) -> int:
        return sum(item.patches for item in self.items)


class BatchPlanner:
    """Forms batches of images of similar size, in shapes that the passes of a run share.

    Args:
        patches: number of patches of a full batch.
        block: number of patches of a merge block.
        spare: padding, in patches, that is cheaper than compiling for another shape.
    """

    def __init__(self, patches: int, block: int, spare: int) -> None:
        self.patches, self.block, self.spare = patches, block, spare
        # Shapes of all batches so far, (rows, length).
        self.known: set[tuple[int, int]] = set()

    def batches(self, items: Sequence[Item]) -> Iterator[Batch]:
        """Batches of all images of a pass, in their order except for the last of each length."""
        own = [row_length(item.patches, self.block) for item in items]
        lengths = shared_lengths(own, {length for _, length in self.known}, self.spare)
        waiting: dict[int, list[Item]] = defaultdict(list)
        for item, length in zip(items, own, strict=True):
            some = waiting[lengths[length]]
            some.append(item)
            if len(some) == self.full(lengths[length]):
                yield from self.of_length(waiting.pop(lengths[length]), lengths[length])
        while waiting:
            length = max(waiting)
            last = waiting.pop(length)
            free = -len(last) % self.rows(len(last), length)
            # Rows that are left hold all shorter images that would need another batch.
            for shorter in sorted(waiting, reverse=True):
                if len(waiting[shorter]) <= free:
                    free -= len(waiting[shorter])
                    last += waiting.pop(shorter)
            yield from self.of_length(last, length)

    def full(self, length: int) -> int:
        """Rows of a full batch, of which many are in eights, so that a kernel can group them."""
        rows = max(1, self.patches // length)
        return rows - rows % 8 if rows > 8 else rows

    def of_length(self, items: list[Item], length: int) -> Iterator[Batch]:
        """One batch, or several of fewer rows; see `rows`."""
        rows = self.rows(len(items), length)
        self.known.add((rows, length))
        for start in range(0, len(items), rows):
            yield Batch(items[start : start + rows], rows, length)

    def rows(self, count: int, length: int) -> int:
        """Rows of the batch that so many images get; fewer if another shape would be too many.

        A full batch has its own shape in any case: there may be thousands of them.
        """
        full = self.full(length)
        rows = min(full, row_count(count))
        known = sorted(n for n, other in self.known if other == length)
        enough = [n for n in known if n >= count]
        limited = len(self.known) >= MOST_SHAPES and count < full
        if enough and (limited or (enough[0] - rows) * length <= self.spare):
            return enough[0]
        return known[-1] if known and limited else rows


def group_by_shape(batches: Iterable[Batch], devices: int) -> Iterator[list[Batch]]:
    """Groups of `devices` batches of one shape; the last group of a shape may be smaller."""
    waiting: dict[tuple[int, int], list[Batch]] = {}
    for batch in batches:
        group = waiting.setdefault((batch.rows, batch.length), [])
        group.append(batch)
        if len(group) == devices:
            yield waiting.pop((batch.rows, batch.length))
    yield from waiting.values()
