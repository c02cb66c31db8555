"""A step of a pass, a batch for each device: which tokens belong to which image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax import Array
from jaxtyping import Int

from jax_unlearn.data.batches import Batch
from jax_unlearn.features.pass_state import TapArrays


@dataclass(frozen=True)
class TokenOwners:
    """What was loaded of some batches of one shape.

    slots: the place of each patch in its device's batch, images one after another; failed: what
    could not be read, with why; devices: at least as many as batches; block: patches of a token.
    """

    batches: Sequence[Batch]
    slots: Sequence[Int[np.ndarray, " patches"]]
    failed: Mapping[int, str]
    devices: int
    block: int

    @property
    def most_images(self) -> int:
        """Of one device, to a power of two, so that the steps of a pass share a few programs."""
        return 1 << (max(len(batch.items) for batch in self.batches) - 1).bit_length()

    @cached_property
    def items(self) -> Int[np.ndarray, "devices tokens"]:
        """Which of its batch's images each token is of, -1 of none."""
        owner = np.full((self.devices, self.batches[0].rows * self.batches[0].length), -1)
        owner = owner[:, :: self.block]
        for number, batch in enumerate(self.batches):
            images = np.arange(len(batch.items))
            owner[number, self._tokens(number)] = np.repeat(images, self._counts(batch))
        return owner

    def files(self) -> Int[np.ndarray, "devices tokens"]:
        """Of which file each token is, -1 of none that could be read."""
        owner = np.full_like(self.items, -1)
        for number, batch in enumerate(self.batches):
            # The last one for those of no image.
            files = [-1 if item.index in self.failed else item.index for item in batch.items]
            owner[number] = np.array([*files, -1])[self.items[number]]
        return owner

    def images(
        self, taps: Mapping[str, Array], means: Mapping[str, Array]
    ) -> Iterator[tuple[int, TapArrays]]:
        """(index of the file, its tokens at each tap) of what could be read.

        means: of some taps the images' means, which stand for the tokens then.
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
            for i, item in enumerate(batch.items):
                if item.index not in self.failed:
                    yield item.index, {name: rows[i] for name, rows in split.items()}

    def _tokens(self, number: int) -> Int[np.ndarray, " tokens"]:
        """The place of each token of a batch."""
        return self.slots[number][:: self.block] // self.block

    def _counts(self, batch: Batch) -> list[int]:
        return [item.patches // self.block for item in batch.items]
