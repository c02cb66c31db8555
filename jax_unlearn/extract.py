"""Images → the rows at the taps, in one pass of the frozen tower."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import track

from jax_unlearn.data.folder import UNREADABLE, ImageFile, ImageReader
from jax_unlearn.data.packing import PackedPatches, frame_sizes, ladder_length, pack
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.errors import UserError
from jax_unlearn.models.qwen3_vision import Qwen3VisionTower, forward
from jax_unlearn.rows import Features

Granularity = Literal["tokens", "images"]
PATCHES_PER_BATCH = 8192


@partial(jax.jit, static_argnums=(0, 3))
def tap_rows(
    graphdef: nnx.GraphDef[Qwen3VisionTower],
    state: nnx.State,
    packed: PackedPatches,
    names: tuple[str, ...],
) -> dict[str, Float[Array, "n d_in"]]:
    """The wanted taps of one packed batch; XLA drops what only the other features need."""
    taps = forward(graphdef, state, packed, None).taps
    return {name: taps[name].reshape(-1, taps[name].shape[-1]).astype("float32") for name in names}


@dataclass
class Batch:
    """Preprocessed images that wait until a batch of one row length is full."""

    length: int
    frames: int = 0
    indexes: list[int] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    grids: list[np.ndarray] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Frames in a full batch: a fixed number of patches, rounded down to a power of two."""
        return 1 << max(0, (PATCHES_PER_BATCH // self.length).bit_length() - 1)

    def add(self, index: int, pixels: np.ndarray, grid: np.ndarray) -> None:
        self.frames += int(grid[0, 0])
        self.indexes.append(index)
        self.pixels.append(pixels)
        self.grids.append(grid)


class Extractor:
    """Runs the tower over images and keeps the rows at the taps of the named Linears."""

    def __init__(
        self, tower: Qwen3VisionTower, preprocessor: Preprocessor, names: Sequence[str]
    ) -> None:
        self.config = tower.config
        self.preprocessor = preprocessor
        self.names = tuple(names)
        self.graphdef, self.state = nnx.split(tower)

    def extract(
        self,
        files: Sequence[ImageFile],
        granularity: Granularity,
        reader: ImageReader,
        description: str,
        console: Console,
    ) -> Features:
        """One pass over the files, in any order of sizes; rows come back in the files' order.

        Raises:
            UserError: no file could be read; or one could not and the reader is strict.
        """
        rows: dict[int, dict[str, np.ndarray]] = {}
        # Without a terminal the bar would leave empty lines.
        quiet = not console.is_terminal
        listed = track(
            files, description=description, console=console, transient=True, disable=quiet
        )
        for batch in self.batches(reader, files, reader.read(listed)):
            for index, taps in self.run(batch):
                if granularity == "images":
                    taps = {n: x.mean(axis=0, dtype=np.float64)[None] for n, x in taps.items()}
                rows[index] = {n: np.asarray(x, np.float32) for n, x in taps.items()}
        if not rows:
            raise UserError(f"{files[0].path.parent}: none of its {len(files)} images can be read")

        order = sorted(rows)
        counts = [len(next(iter(rows[index].values()))) for index in order]
        taps = {name: np.concatenate([rows[i][name] for i in order]) for name in self.names}
        return Features(
            tuple(files[i] for i in order), taps, np.repeat(np.arange(len(order)), counts)
        )

    def extract_image(self, image: Image.Image) -> dict[str, Float[np.ndarray, "tokens d_in"]]:
        """The taps of one image that is no file (the blank one)."""
        pixels, grid = self.preprocessor(image)
        batch = Batch(self.row_length(grid))
        batch.add(0, pixels, grid)
        return next(self.run(batch))[1]

    def row_length(self, grid: np.ndarray) -> int:
        return ladder_length(max(frame_sizes(grid)), self.config.spatial_merge_size**2)

    def batches(
        self,
        reader: ImageReader,
        files: Sequence[ImageFile],
        images: Iterator[tuple[int, Image.Image]],
    ) -> Iterator[Batch]:
        """Group images by the ladder's length, so that only a few shapes are compiled."""
        waiting: dict[int, Batch] = {}
        for index, image in images:
            try:
                pixels, grid = self.preprocessor(image)
            except UNREADABLE as error:
                reader.skip(files[index].path, error)
                continue
            length = self.row_length(grid)
            batch = waiting.setdefault(length, Batch(length))
            batch.add(index, pixels, grid)
            if batch.frames >= batch.rows:
                yield waiting.pop(length)
        yield from waiting.values()

    def run(self, batch: Batch) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The tower on one batch: (index of the image, its tokens at each tap)."""
        merge = self.config.spatial_merge_size
        packed, slots = pack(
            np.concatenate(batch.pixels),
            np.concatenate(batch.grids),
            merge=merge,
            side=self.config.table_side,
            rows=max(batch.rows, 1 << (batch.frames - 1).bit_length()),
            length=batch.length,
        )
        taps = tap_rows(self.graphdef, self.state, packed, self.names)
        tokens = slots[:: merge**2] // merge**2
        counts = [int(grid.prod()) // merge**2 for grid in batch.grids]
        ends = np.cumsum(counts)[:-1]
        pieces = {name: np.split(np.asarray(x)[tokens], ends) for name, x in taps.items()}
        for i, index in enumerate(batch.indexes):
            yield index, {name: piece[i] for name, piece in pieces.items()}
