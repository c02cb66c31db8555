"""Map the tokens of a step's batches to their images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax import Array
from jaxtyping import Int

from jax_unlearn.data.batches import Batch
from jax_unlearn.features.pass_state import Grid, TapArrays


@dataclass(frozen=True)
class TokenOwners:
    """The images that own the tokens of a step, which has one batch per device.

    Attributes:
        batches: batches of one shape, at most one per device.
        slots: position of each patch in its device's batch, image after image.
        coordinates: (row, column) of each of those patches in its image.
        failed: the reason by file index for every image that could not be read.
        devices: number of devices.
        block: patches per token.
    """

    batches: Sequence[Batch]
    slots: Sequence[Int[np.ndarray, " patches"]]
    coordinates: Sequence[Int[np.ndarray, "patches 2"]]
    failed: Mapping[int, str]
    devices: int
    block: int

    @property
    def most_images(self) -> int:
        """Largest number of images of a device, rounded up to a power of two.

        Rounding lets the steps of a pass share a few compiled programs.
        """
        return 1 << (max(len(batch.items) for batch in self.batches) - 1).bit_length()

    @cached_property
    def items(self) -> Int[np.ndarray, "devices tokens"]:
        """Index of each token's image within its batch; -1 for padding."""
        owner = np.full((self.devices, self.batches[0].rows * self.batches[0].length), -1)
        owner = owner[:, :: self.block]
        for number, batch in enumerate(self.batches):
            images = np.arange(len(batch.items))
            owner[number, self._tokens(number)] = np.repeat(images, self._counts(batch))
        return owner

    def files(self) -> Int[np.ndarray, "devices tokens"]:
        """Index of each token's file; -1 for padding and files that could not be read."""
        owner = np.full_like(self.items, -1)
        for number, batch in enumerate(self.batches):
            # The last entry is for padding, whose index is -1.
            files = [-1 if item.index in self.failed else item.index for item in batch.items]
            owner[number] = np.array([*files, -1])[self.items[number]]
        return owner

    def images(
        self, taps: Mapping[str, Array], means: Mapping[str, Array]
    ) -> Iterator[tuple[int, TapArrays, Grid]]:
        """Yields (index of the file, its tokens at each tap, its grid) for every image read.

        Args:
            taps: the step's tokens at each tap.
            means: the image means at some taps, which replace the tokens there.
        """
        found = {
            name: np.split(np.asarray(means.get(name, x)), self.devices) for name, x in taps.items()
        }
        for number, batch in enumerate(self.batches):
            tokens, ends = self._tokens(number), np.cumsum(self._counts(batch))[:-1]
            split = {
                name: x[number][:, None] if name in means else np.split(x[number][tokens], ends)
                for name, x in found.items()
            }
            for i, (item, grid) in enumerate(zip(batch.items, self._grids(number), strict=True)):
                if item.index not in self.failed:
                    yield item.index, {name: rows[i] for name, rows in split.items()}, grid

    def _grids(self, number: int) -> list[Grid]:
        """Rows and columns of tokens of each image of a batch."""
        side = math.isqrt(self.block)
        starts = np.cumsum([0, *(item.patches for item in self.batches[number].items[:-1])])
        last = np.maximum.reduceat(self.coordinates[number], starts)
        return [(int(row) // side + 1, int(column) // side + 1) for row, column in last]

    def _tokens(self, number: int) -> Int[np.ndarray, " tokens"]:
        """Position of each token in its device's batch, image after image."""
        return self.slots[number][:: self.block] // self.block

    def _counts(self, batch: Batch) -> list[int]:
        return [item.patches // self.block for item in batch.items]
