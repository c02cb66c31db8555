"""Accumulate the statistics of forget or preserve images, one image at a time."""

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
from jax_unlearn.features.gram import BLOCK, lower_half, symmetric
from jax_unlearn.features.samples import Sample, SampleFeatures
from jax_unlearn.features.statistics import (
    Output,
    Rows,
    Statistics,
    as_gram,
    concatenated,
    merge,
    statistics,
)
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runtime import collectives, processes
from jax_unlearn.runtime.mesh import over_data
from jax_unlearn.runtime.snapshots import Snapshot

Granularity = Literal["tokens", "images"]


class StreamingStatistics:
    """Accumulates the statistics of rows at one tap, image by image.

    Args:
        d_in: width of the tap.
        output: the Linear's original output, for forget rows; None for preserve rows, whose
            statistics do not depend on the image.
    """

    def __init__(self, d_in: int, output: Output | None) -> None:
        self.d_in, self.output = d_in, output
        self.waiting: list[tuple[int, Float[np.ndarray, "n d_in"]]] = []
        self.rows = 0
        self.sums: Statistics | None = None
        # Rows kept of each image; concatenated once at the end, since that copies all of them.
        self.kept: list[Rows] = []

    def add(self, image: int, x: Float[np.ndarray, "n d_in"]) -> None:
        """Add all rows of one image; each image may be added once."""
        self.waiting.append((image, x))
        self.rows += len(x)
        if self.rows >= max(BLOCK, self.d_in):
            self._fold()

    def finish(self) -> Statistics:
        """Statistics of all images so far."""
        if self.sums is None:
            return self._take()
        if self.waiting:
            self._fold()
        return replace(self.sums, rows=self._kept())

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The pending images and the sums of earlier ones, for `restore`."""
        x, image = self._waiting()
        arrays = {f"{prefix}.waiting.x": x, f"{prefix}.waiting.image": image}
        if self.sums:
            arrays |= replace(self.sums, rows=self._kept()).arrays(f"{prefix}.sums")
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Continue from the state saved by `arrays`."""
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
        return self.kept[0].concatenated(*self.kept[1:]) if self.kept else None

    def _waiting(self) -> tuple[Float[np.ndarray, "n d_in"], Int[np.ndarray, " n"]]:
        """The rows of pending images, and the image of each row."""
        empty = np.zeros((0, self.d_in), np.float32)
        x = np.concatenate([empty, *(rows for _, rows in self.waiting)])
        counts = [len(rows) for _, rows in self.waiting]
        return x, np.repeat(np.array([i for i, _ in self.waiting], int), counts)

    def _take(self) -> Statistics:
        """Statistics of the pending images, which are then no longer pending."""
        x, image = self._waiting()
        self.waiting, self.rows = [], 0
        return statistics(x, image, self.output)

    def _fold(self) -> None:
        """Add the pending images to the sums."""
        block = as_gram(self._take())
        if block.rows:
            self.kept.append(block.rows)
        block = replace(block, rows=None)
        self.sums = merge(self.sums, block) if self.sums else block


class SideStatistics:
    """Accumulates the statistics of forget or preserve images at several taps, image by image.

    Args:
        linears: the Linears at whose inputs rows are summed.
        forget: whether these are forget images, of which per-image rows are kept for the targets.
        granularity: whether a row of the loss is a token or an image.
        files: all samples that may be added; they are identified by their index in it.
        split: seed that holds out a fifth of each class's images to choose the adapter by; None
            for no hold-out.
        mesh: devices on which preserve tokens are summed (`device_gram`); by default the host sums
            them in float64.
    """

    def __init__(
        self,
        linears: Sequence[FrozenLinear],
        forget: bool,
        granularity: Granularity,
        files: Sequence[Sample],
        split: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        held: set[Sample] = set()
        if split is not None:
            held |= set(split_held_out([f for f in files if isinstance(f, ImageFile)], split)[1])
        self.forget, self.files, self.held = forget, files, held
        self.granularity, self.split = granularity, split
        self.mesh = None if forget or granularity == "images" else mesh
        # The last entry is for tokens of no image, whose owner is -1.
        self.is_held = np.array([*(file in held for file in files), False])
        parts = range(1 if split is None else 2)
        self.taps = {one.name: [self._streaming(one) for _ in parts] for one in linears}

    def _streaming(self, linear: FrozenLinear) -> StreamingStatistics | DeviceGram:
        d_in = linear.shape[1]
        if self.mesh:
            return DeviceGram(d_in, self.mesh)
        return StreamingStatistics(d_in, linear.output if self.forget else None)

    def needs_tokens(self, name: str) -> bool:
        """Whether `add` needs all tokens at a tap."""
        return name in self.taps and self.granularity == "tokens" and not self.mesh

    def add(self, image: int, taps: Mapping[str, Float[np.ndarray, "tokens d_in"]]) -> None:
        """Add one image: its tokens at each tap, or their mean where `needs_tokens` is false."""
        for name, parts in self.taps.items():
            x = taps[name]
            if self.granularity == "images":
                x = x.mean(axis=0, dtype=np.float64)[None].astype(np.float32)
            streaming = parts[int(self.is_held[image])]
            if isinstance(streaming, StreamingStatistics):
                streaming.add(image, x)

    def add_step(self, taps: Mapping[str, Array], owner: Int[np.ndarray, " tokens"]) -> None:
        """Add the tokens of several images, which are on the devices.

        Args:
            taps: the tokens at each tap.
            owner: index of each token's image; -1 for padding.
        """
        if not self.mesh:
            return
        for name, parts in self.taps.items():
            for number, streaming in enumerate(parts):
                if isinstance(streaming, DeviceGram):
                    mask = (owner >= 0) & (self.is_held[owner] == bool(number))
                    streaming.add(taps[name], jax.device_put(mask, over_data(self.mesh)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The state of all accumulators, for `restore`."""
        return {k: array for key, one in self._each() for k, array in one.arrays(key).items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from the state saved by `arrays`."""
        for key, streaming in self._each():
            streaming.restore(arrays, key)

    def _each(self) -> Iterator[tuple[str, Any]]:
        for name, parts in self.taps.items():
            for number, streaming in enumerate(parts):
                yield f"{name}.{number}", streaming

    def finish(self, features: SampleFeatures, images: Sequence[int]) -> SampleFeatures:
        """Add the statistics, over the images of all processes, to `features`.

        Must be called by all processes, after the last `add`.

        Args:
            features: features of these images.
            images: indices of the images in `features`, in their order.
        """
        of_all = over_all_processes({key: streaming.finish() for key, streaming in self._each()})
        places = np.array(images, int)
        statistics = {
            name: tuple(of_all[f"{name}.{i}"].numbered(places) for i in range(len(parts)))
            for name, parts in self.taps.items()
        }
        # `features` may hold only some of the images, while the statistics cover all.
        choosing = None
        if self.split is not None:
            choosing = np.array([file in self.held for file in features.files])
        return replace(features, statistics=statistics, choosing=choosing)


def over_all_processes(ours: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Merge statistics over all processes, by name; no image may be in two processes.

    Gram matrices are all-reduced, so the bytes sent grow neither with the images nor with the
    processes. Rows are all-gathered; they are those kept of forget images, or few.
    """
    if processes.count() == 1 or not ours:
        return dict(ours)
    counts = np.array([[one.count, one.gram is not None] for one in ours.values()], np.float64)
    # If one process has a Gram matrix, all must use one, and know it before they send rows.
    sums = collectives.all_reduce_sum(counts)
    own = {
        key: as_gram(one) if grams or count > len(one.total) else one
        for (key, one), (count, grams) in zip(ours.items(), sums, strict=True)
    }
    found = dict(own)
    for theirs in collectives.all_gather_bytes(lambda: without_grams(own).to_bytes()):
        arrays = Snapshot.of_bytes(theirs).arrays
        found |= {
            key: concatenated(one, Statistics.of_arrays(arrays, key)) for key, one in found.items()
        }
    for key, one in own.items():
        if one.gram is not None:
            half = collectives.all_reduce_sum(lower_half(one.gram))
            found[key] = replace(found[key], gram=symmetric(half, len(one.total)))
    return found


def without_grams(statistics: Mapping[str, Statistics]) -> Snapshot:
    parts = (replace(one, gram=None).arrays(key) for key, one in statistics.items())
    return Snapshot({name: array for part in parts for name, array in part.items()}, {})
