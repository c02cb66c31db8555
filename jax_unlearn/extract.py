"""Images → the rows at the taps, in one pass of the frozen tower."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from rich.progress import track

from jax_unlearn.data.batches import Batch, Item, Pool
from jax_unlearn.data.folder import UNREADABLE, ImageFile, ImageReader
from jax_unlearn.data.packing import PackedPatches, batch_shape, frame_sizes, pack
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.errors import UserError
from jax_unlearn.mesh import make_mesh, over_data
from jax_unlearn.models.qwen3_vision import Qwen3VisionTower
from jax_unlearn.rows import Features, Tap, ends_merger
from jax_unlearn.taps import place_tower, tap_rows

PATCHES_PER_BATCH = 8192
# What is done with each image: its number and its tokens at each tap.
Each = Callable[[int, Mapping[str, np.ndarray]], None]


@dataclass
class Work:
    """What a pass of the tower came to: patches of images, slots computed, shapes compiled."""

    patches: int = 0
    slots: int = 0
    shapes: set[tuple[int, int]] = field(default_factory=set)

    def add(self, batches: Sequence[Batch], devices: int) -> None:
        rows, length = batches[0].rows, batches[0].length
        self.patches += sum(batch.patches for batch in batches)
        self.slots += devices * rows * length
        self.shapes.add((rows, length))

    def metrics(self) -> dict[str, int | float]:
        """padding: share of the slots that held no patch."""
        padding = 1 - self.patches / max(self.slots, 1)
        return {"patches": self.patches, "padding": padding, "compilations": len(self.shapes)}


class Extractor:
    """Runs the tower over images and keeps the rows at the taps of the named Linears."""

    def __init__(
        self,
        tower: Qwen3VisionTower,
        preprocessor: Preprocessor,
        names: Sequence[str],
        mesh: Mesh | None = None,
    ) -> None:
        self.config = tower.config
        self.preprocessor = preprocessor
        self.names = tuple(names)
        self.mesh = mesh or make_mesh("data=1")
        self.devices = self.mesh.devices.size
        self.graphdef, state = nnx.split(tower)
        self.state = place_tower(state, self.mesh)
        self.work = Work()

    def extract(
        self,
        files: Sequence[ImageFile],
        reader: ImageReader,
        description: str,
        console: Console,
        tokens: Collection[str] = (),
        each: Each | None = None,
        keep: Collection[ImageFile] | None = None,
    ) -> Features:
        """One pass over the files, in any order of sizes; rows come back in the files' order.

        Args:
            tokens: taps of a Merger's last Linear of which all tokens are kept, and not the mean of
                each image; of other taps they always are.
            each: called with all tokens of each image, in whatever order they come.
            keep: of which files rows are kept; of all, if not given.

        Raises:
            UserError: no file could be read; or one could not and the reader is strict.
        """
        rows: dict[int, dict[str, np.ndarray]] = {}
        # Without a terminal the bar would leave empty lines.
        quiet = not console.is_terminal
        listed = track(
            files, description=description, console=console, transient=True, disable=quiet
        )
        for batches in self.together(self.batches(reader, files, reader.read(listed))):
            for index, taps in self.run(batches):
                if each:
                    each(index, taps)
                if keep is not None and files[index] not in keep:
                    continue
                last = {n: x for n, x in taps.items() if ends_merger(n) and n not in tokens}
                taps |= {n: x.mean(axis=0, dtype=np.float64)[None] for n, x in last.items()}
                rows[index] = {n: np.asarray(x, np.float32) for n, x in taps.items()}
        if not rows:
            raise UserError(f"{files[0].path.parent}: none of its {len(files)} images can be read")

        order = sorted(rows)
        merged = {name: Tap.of([rows[i][name] for i in order]) for name in self.names}
        return Features(tuple(files[i] for i in order), merged)

    def extract_image(self, image: Image.Image) -> dict[str, Float[np.ndarray, "tokens d_in"]]:
        """The taps of one image that is no file (the blank one)."""
        pixels, grid = self.preprocessor(image)
        block = self.config.spatial_merge_size**2
        shape = batch_shape(frame_sizes(grid), block, self.config.one_row)
        return next(self.run([Batch([Item(0, pixels, grid)], *shape)]))[1]

    def batches(
        self,
        reader: ImageReader,
        files: Sequence[ImageFile],
        images: Iterator[tuple[int, Image.Image]],
    ) -> Iterator[Batch]:
        """The images in batches of a few shapes, in whatever order fills them."""
        config = self.config
        pool = Pool(PATCHES_PER_BATCH, config.spatial_merge_size**2, config.one_row)
        for index, image in images:
            try:
                pixels, grid = self.preprocessor(image)
            except UNREADABLE as error:
                reader.skip(files[index].path, error)
                continue
            yield from pool.add(Item(index, pixels, grid))
        yield from pool.rest()

    def together(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Batches of one shape, one for each device; in the end fewer."""
        waiting: dict[tuple[int, int], list[Batch]] = {}
        for batch in batches:
            alike = waiting.setdefault((batch.rows, batch.length), [])
            alike.append(batch)
            if len(alike) == self.devices:
                yield waiting.pop((batch.rows, batch.length))
        yield from waiting.values()

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The tower on a batch for each device: (index of the image, its tokens at each tap)."""
        merge = self.config.spatial_merge_size
        self.work.add(batches, self.devices)
        packed = [self.pack(batch) for batch in batches]
        # A device without a batch computes the first one again.
        rows = [arrays for arrays, _ in packed] + [packed[0][0]] * (self.devices - len(packed))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
        placed = jax.device_put(whole, over_data(self.mesh))
        taps = tap_rows(self.graphdef, self.state, placed, self.names, self.mesh)
        found = {name: np.split(np.asarray(x), self.devices) for name, x in taps.items()}
        for number, (batch, (_, slots)) in enumerate(zip(batches, packed, strict=True)):
            tokens = slots[:: merge**2] // merge**2
            ends = np.cumsum([len(item.pixels) // merge**2 for item in batch.items])[:-1]
            pieces = {name: np.split(x[number][tokens], ends) for name, x in found.items()}
            for i, item in enumerate(batch.items):
                yield item.index, {name: piece[i] for name, piece in pieces.items()}

    def pack(self, batch: Batch) -> tuple[PackedPatches, Int[np.ndarray, " patches"]]:
        """A batch's arrays, and the place of each patch in them."""
        return pack(
            np.concatenate([item.pixels for item in batch.items]),
            np.concatenate([item.grid for item in batch.items]),
            merge=self.config.spatial_merge_size,
            side=self.config.table_side,
            rows=batch.rows,
            length=batch.length,
        )
