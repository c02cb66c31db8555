"""Run the frozen tower over images and collect the rows at the taps, in one pass."""

import gc
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console

from jax_unlearn.data.batches import PATCHES, Batch, BatchPlanner, Item, group_by_shape
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.loader import CountPatches, Loaded, PackStep, load
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.data.shared_memory import workers_in_shared_memory
from jax_unlearn.features.pass_state import PassState, TapArrays
from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.features.streaming import Granularity, SideStatistics
from jax_unlearn.features.throughput import Work, ready_at, usual_workers
from jax_unlearn.features.token_owners import TokenOwners
from jax_unlearn.features.tower_pass import image_means, place_tower, tap_rows
from jax_unlearn.models.qwen3_vision.packing import PackedPatches, pack
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runtime import processes
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import make_mesh, over_data
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.runtime.snapshots import NoSnapshots, Stage
from jax_unlearn.runtime.used_if import used_if

SumOn = Literal["auto", "host", "device"]
QWEN = "qwen_images"
CLIP = ("clip_images", "clip_names")


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """How the frozen tower is run over the samples, and which of its rows are kept."""

    granularity: Granularity = used_if("images", source=QWEN, whole_images=False)
    """Rows of the loss: every token, or the mean of each image's tokens. The target stand_in always
    uses both."""
    max_pixels: int = used_if(2**20, source=QWEN)
    """Scale larger images down to this area, in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the tower."""
    keep_means: int = used_if(2000, source=QWEN)
    """Number of preserve images, drawn with the seed, whose mean embedding is kept in memory. The
    targets near and twin choose among them, and probes are fitted on them; also the largest number
    of preserve images held out for evaluation. Training uses all preserve images."""
    batch_patches: int = used_if(PATCHES, source=QWEN)
    """Patches per batch of a device, a power of two; `inspect --plan` shows how many fit."""
    sum_on: SumOn = used_if("auto", source=QWEN)
    """Where rows are averaged and summed: on the host in float64, or on the devices in float32;
    auto uses the devices unless they are CPUs."""


class Extractor:
    """Runs the tower over images and keeps the rows at the taps of the named Linears.

    Args:
        tower: the tower.
        preprocessor: the checkpoint's image processor.
        names: full names of the Linears.
        settings: batch size and where rows are summed; the tower has `dtype` already.
        mesh: the devices of this process; a single one by default.
        workers: processes that decode and pack images; by default `usual_workers`.
        seed: seed of the order in which images are read.
    """

    def __init__(
        self,
        tower: Qwen3VisionTower,
        preprocessor: Preprocessor,
        names: Sequence[str],
        settings: ExtractionSettings,
        mesh: Mesh | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        self.config = tower.config
        self.preprocessor = preprocessor
        self.names = tuple(names)
        self.mesh = mesh or make_mesh("data=1")
        self.devices = self.mesh.devices.size
        self.workers = workers
        self.seed = seed
        block = self.config.spatial_merge_size**2
        # Shapes of all passes, also of resumed passes that had nothing left to do.
        self.planner = BatchPlanner(settings.batch_patches, block, self.config.padding_for_shape)
        automatic = "host" if jax.default_backend() == "cpu" else "device"
        self.on_device = (automatic if settings.sum_on == "auto" else settings.sum_on) == "device"
        self.graphdef, state = nnx.split(tower)
        self.state = place_tower(state, self.mesh)
        self.work = Work()
        # Whether processes decode images, whose batches come through shared memory.
        self.shared_memory = False
        # When the devices finish the step that was dispatched last.
        self.ready: Future[float] | None = None
        self.watch = ThreadPoolExecutor(1)

    def extract(
        self,
        files: Sequence[ImageFile],
        reader: ImageReader,
        description: str,
        console: Console,
        tokens: Collection[str] = (),
        statistics: SideStatistics | None = None,
        keep: Collection[ImageFile] | None = None,
        stage: Stage | None = None,
        sampled: Collection[ImageFile] = (),
    ) -> SampleFeatures:
        """One pass over the files, each process over its share.

        Args:
            files: the images.
            reader: records files that cannot be read.
            description: label of the progress bar.
            console: where the progress bar is drawn.
            tokens: see `PassState`.
            statistics: see `PassState`.
            keep: see `PassState`.
            stage: snapshots to resume from and save to.
            sampled: see `PassState`.

        Returns:
            The features, with samples and rows in the order of the files.

        Raises:
            UserError: no file can be read; or one cannot and the reader is strict.
        """
        stage = stage or NoSnapshots()
        state = PassState(files, self.names, tokens, keep, statistics, sampled)
        steps = self.plan(state, reader)
        if saved := stage.load():
            if saved.facts["plan"] != state.plan:
                raise UserError(
                    f"{files[0].path.parent}: other images can be read now than before; "
                    "restore them, or start again with --overwrite alone"
                )
            state.restore(saved)
            self.report(state, reader)
        with progress_bar(console) as bar:
            task = bar.add_task(description, total=images_in(steps))
            bar.advance(task, images_in(steps[: state.steps]))
            for batches in self.run(state, steps[state.steps :], reader):
                bar.advance(task, images_in([batches]))
                stage.step(state.snapshot)
        stage.done(state.snapshot)
        if self.shared_memory:
            # Grain's iterator is in a reference cycle, which keeps its last piece allocated.
            gc.collect()
        state.share()
        self.report(state, reader)
        if not state.rows:
            some = f"its {len(files)} images"
            if keep is not None:
                some = f"the {len(keep)} images drawn by --keep-means"
            raise UserError(f"{files[0].path.parent}: none of {some} can be read")
        return state.features()

    def extract_image(self, image: Image.Image) -> TapArrays:
        """The taps of an image in memory, such as the blank one.

        It joins a batch shape of earlier passes, if the padding takes less time than compiling.
        """
        pixels, grid = self.preprocessor(image)
        merge, side = self.config.spatial_merge_size, self.config.table_side
        (batch,) = self.planner.batches([Item(0, len(pixels))])
        rows, length = batch.rows, batch.length
        packed, slots = pack(pixels, grid, merge=merge, side=side, rows=rows, length=length)
        whole = jax.tree.map(lambda x: np.concatenate([x] * self.devices), packed)
        step = self.step([batch], [slots], {}, whole)
        return next(step.images(self.tower(whole), {}))[1]

    def plan(self, state: PassState, reader: ImageReader) -> list[list[Batch]]:
        """Plan this process's steps, one batch per device each, from the images' sizes."""
        files = state.files
        order = np.random.default_rng(self.seed).permutation(len(files))
        mine = order[processes.index() :: processes.count()].tolist()
        sizes = load([files[i] for i in mine], CountPatches(self.preprocessor), workers=0)
        items = []
        for index, size in zip(mine, sizes, strict=True):
            if isinstance(size, str):
                state.skip({index: size})
            else:
                items.append(Item(index, size))
        steps = list(group_by_shape(self.planner.batches(items), self.devices))
        state.planned(steps)
        self.report(state, reader)
        return steps

    def report(self, state: PassState, reader: ImageReader) -> None:
        for index in sorted(state.skipped):
            reader.skip(state.files[index], state.skipped[index])

    def run(
        self, state: PassState, steps: Sequence[list[Batch]], reader: ImageReader
    ) -> Iterator[list[Batch]]:
        """Run the tower step by step; yields a step once its images have been collected."""
        begun = time.perf_counter()
        config = self.config
        packing = PackStep(
            state.files,
            self.preprocessor,
            config.spatial_merge_size,
            config.table_side,
            self.devices,
        )
        patches = sum(batch.patches for batches in steps for batch in batches)
        workers = min(usual_workers(patches) if self.workers is None else self.workers, len(steps))
        sizes = [packing.size(batches) for batches in steps]
        workers = workers_in_shared_memory(sizes, workers, required=self.workers is not None)
        self.shared_memory |= workers > 0
        # Closed even if the traceback of an exception keeps it.
        with closing(load(steps, packing, workers)) as loaded:
            for step, taps, means in self.pipelined(state, steps, self.waiting_for(loaded)):
                self.work.add(step.batches, self.devices)
                if state.statistics and self.on_device:
                    state.statistics.add_step(taps, step.files().ravel())
                for index, rows, grid in step.images(taps, means):
                    state.add(index, rows, grid)
                if step.failed:
                    state.skip(step.failed)
                    self.report(state, reader)
                state.step_done()
                self.work.seconds += time.perf_counter() - begun
                yield list(step.batches)
                begun = time.perf_counter()

    def waiting_for(self, loaded: Iterable[Loaded]) -> Iterator[Loaded]:
        """Pass on `loaded`, adding the time that the devices are idle to `work.waited`."""
        begun = time.perf_counter()
        for step in loaded:
            if self.ready is None or self.ready.done():
                idle = max(begun, self.ready.result()) if self.ready else begun
                self.work.waited += max(0.0, time.perf_counter() - idle)
            yield step
            begun = time.perf_counter()

    def pipelined(
        self, state: PassState, steps: Iterable[list[Batch]], loaded: Iterable[Loaded]
    ) -> Iterator[tuple[TokenOwners, dict[str, Array], dict[str, Array]]]:
        """Yields (step, taps, image means) of a step after the next one has been dispatched.

        The devices therefore do not wait for the host.
        """
        before = None
        for batches, (packed, slots, failed) in zip(steps, loaded, strict=True):
            step, taps = self.step(batches, slots, failed, packed), self.tower(packed)
            now = step, taps, self.means(state, step, taps)
            if before:
                yield before
            before = now
        if before:
            yield before

    def step(
        self,
        batches: Sequence[Batch],
        slots: Sequence[Int[np.ndarray, " patches"]],
        failed: dict[int, str],
        packed: PackedPatches,
    ) -> TokenOwners:
        block = self.config.spatial_merge_size**2
        of_devices = np.asarray(packed.coordinates).reshape(self.devices, -1, 2)
        coordinates = [of_devices[number][own] for number, own in enumerate(slots)]
        return TokenOwners(batches, slots, coordinates, failed, self.devices, block)

    def tower(self, packed: PackedPatches) -> dict[str, Float[Array, "n d_in"]]:
        """Dispatch one batch per device; returns its taps, concatenated, without waiting."""
        placed = jax.device_put(packed, over_data(self.mesh))
        taps = tap_rows(self.graphdef, self.state, placed, self.names, self.mesh)
        self.ready = self.watch.submit(ready_at, taps)
        return taps

    def means(
        self, state: PassState, step: TokenOwners, taps: dict[str, Array]
    ) -> dict[str, Array]:
        """Image means of the taps whose tokens the host does not need, if computed on devices."""
        some = {name: x for name, x in taps.items() if not state.needs_tokens(name)}
        if not self.on_device or not some:
            return {}
        owner = jax.device_put(step.items.ravel(), over_data(self.mesh))
        return image_means(some, owner, images=step.most_images, mesh=self.mesh)


def images_in(steps: Iterable[Sequence[Batch]]) -> int:
    return sum(len(batch.items) for batches in steps for batch in batches)
