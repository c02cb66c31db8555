"""Statistics of images while they stream through the tower: no row is kept that need not be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.splits import split_held_out
from jax_unlearn.features.device_gram import DeviceGram
from jax_unlearn.features.gram import BLOCK
from jax_unlearn.features.samples import Sample, SampleFeatures
from jax_unlearn.features.statistics import Output, Rows, Statistics, merge, statistics, summed
from jax_unlearn.features.union import union
from jax_unlearn.objective.projector import Path
from jax_unlearn.runtime.mesh import over_data

Granularity = Literal["tokens", "images"]


class StreamingStatistics:
    """Statistics of images as they come, one call an image.

    Args:
        d_in: width of the tap.
        output: the Linear's original output, for rows to forget; None for rows to preserve, whose
            images do not matter.
    """

    def __init__(self, d_in: int, output: Output | None) -> None:
        self.d_in, self.output = d_in, output
        self.waiting: list[tuple[int, Float[np.ndarray, "n d_in"]]] = []
        self.rows = 0
        self.sums: Statistics | None = None
        # What is kept of each image; joined in the end, for each joining copies all of it.
        self.kept: list[Rows] = []

    def add(self, image: int, x: Float[np.ndarray, "n d_in"]) -> None:
        """All rows of one image; its number is called once only."""
        self.waiting.append((image, x))
        self.rows += len(x)
        if self.rows >= max(BLOCK, self.d_in):
            self._fold()

    def finish(self) -> Statistics:
        """Of all images so far."""
        if self.sums is None:
            return self._take()
        if self.waiting:
            self._fold()
        return replace(self.sums, rows=self._kept())

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For `restore`: the images that wait, and the sums of those before."""
        x, image = self._waiting()
        arrays = {f"{prefix}.waiting.x": x, f"{prefix}.waiting.image": image}
        if self.sums:
            arrays |= replace(self.sums, rows=self._kept()).arrays(f"{prefix}.sums")
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Begin where `arrays` was called."""
        x, image = arrays[f"{prefix}.waiting.x"], arrays[f"{prefix}.waiting.image"]
        starts = np.flatnonzero(np.diff(image, prepend=-1))
        self.waiting = [
            (int(image[start]), rows)
            for start, rows in zip(starts, np.split(x, starts[1:]), strict=False)
        ]
        self.rows = len(x)
        if f"{prefix}.sums.count" in arrays:
            sums = Statistics.of_arrays(arrays, f"{prefix}.sums")
            self.kept = [sums.rows] if sums.rows else []
            self.sums = replace(sums, rows=None)

    def _kept(self) -> Rows | None:
        return self.kept[0].joined(*self.kept[1:]) if self.kept else None

    def _waiting(self) -> tuple[Float[np.ndarray, "n d_in"], Int[np.ndarray, " n"]]:
        """Rows of the images that wait, and which image each is of."""
        empty = np.zeros((0, self.d_in), np.float32)
        x = np.concatenate([empty, *(rows for _, rows in self.waiting)])
        counts = [len(rows) for _, rows in self.waiting]
        return x, np.repeat(np.array([i for i, _ in self.waiting], int), counts)

    def _take(self) -> Statistics:
        """Statistics of the images that wait."""
        x, image = self._waiting()
        self.waiting, self.rows = [], 0
        return statistics(x, image, self.output)

    def _fold(self) -> None:
        """Add the images that wait to the sums."""
        block = summed(self._take())
        if block.rows:
            self.kept.append(block.rows)
        block = replace(block, rows=None)
        self.sums = merge(self.sums, block) if self.sums else block


class SideStatistics:
    """Statistics of one side on several paths, one call an image.

    Args:
        paths: whose last taps to gather.
        forget: whether the images are to be forgotten: then what a target may need of each is kept.
        granularity: what a row of the loss is.
        files: all samples that may come, by whose place in it they are called.
        split: seed of a fifth of each class's images to choose the adapter by; None without that.
        mesh: devices that sum up what is only summed, the tokens to keep (`device_statistics`); if
            not given, the host does it in float64.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        forget: bool,
        granularity: Granularity,
        files: Sequence[Sample],
        split: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        held: set[Sample] = set()
        if split is not None:
            held |= set(split_held_out([f for f in files if isinstance(f, ImageFile)], split)[1])
        self.paths, self.forget = paths, forget
        self.files, self.held = files, held
        self.granularity, self.split = granularity, split
        self.mesh = None if forget or granularity == "images" else mesh
        # The last for what is of no image.
        self.is_held = np.array([*(file in held for file in files), False])
        groups = range(1 if split is None else 2)
        self.gatherers = {path.last_tap: [self._gatherer(path) for _ in groups] for path in paths}

    def _gatherer(self, path: Path) -> StreamingStatistics | DeviceGram:
        d_in = path.shapes[path.last_tap][1]
        if self.mesh:
            return DeviceGram(d_in, self.mesh)
        return StreamingStatistics(d_in, path.output if self.forget else None)

    def needs_tokens(self, name: str) -> bool:
        """Whether `add` asks for all tokens at a tap."""
        return name in self.gatherers and self.granularity == "tokens" and not self.mesh

    def add(self, image: int, taps: Mapping[str, Float[np.ndarray, "tokens d_in"]]) -> None:
        """The tokens of one image at each tap, or their mean where it is all that is needed."""
        for name, groups in self.gatherers.items():
            x = taps[name]
            if self.granularity == "images":
                x = x.mean(axis=0, dtype=np.float64)[None].astype(np.float32)
            gatherer = groups[int(self.is_held[image])]
            if isinstance(gatherer, StreamingStatistics):
                gatherer.add(image, x)

    def add_step(self, taps: Mapping[str, Array], owner: Int[np.ndarray, " tokens"]) -> None:
        """Tokens of several images, on the devices.

        owner: which image each is of; -1 of none.
        """
        if not self.mesh:
            return
        for name, groups in self.gatherers.items():
            for number, gatherer in enumerate(groups):
                if isinstance(gatherer, DeviceGram):
                    mask = (owner >= 0) & (self.is_held[owner] == bool(number))
                    gatherer.add(taps[name], jax.device_put(mask, over_data(self.mesh)))

    def arrays(self) -> dict[str, np.ndarray]:
        """For `restore`."""
        return {k: array for key, one in self._each() for k, array in one.arrays(key).items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Begin where `arrays` was called."""
        for key, gatherer in self._each():
            gatherer.restore(arrays, key)

    def _each(self) -> Iterator[tuple[str, Any]]:
        for name, groups in self.gatherers.items():
            for number, gatherer in enumerate(groups):
                yield f"{name}.{number}", gatherer

    def finish(self, features: SampleFeatures, images: Sequence[int]) -> SampleFeatures:
        """The features of the same images, with the statistics of all processes' images.

        To be called by all processes; no more may be added then.

        Args:
            images: that the features have, in their order.
        """
        gathered = union({key: gatherer.finish() for key, gatherer in self._each()})
        places = np.array(images, int)
        statistics = {
            name: tuple(gathered[f"{name}.{i}"].numbered(places) for i in range(len(groups)))
            for name, groups in self.gatherers.items()
        }
        # Rows of some of the images are enough where statistics have all.
        choosing = None
        if self.split is not None:
            choosing = np.array([file in self.held for file in features.files])
        return replace(features, statistics=statistics, choosing=choosing)
