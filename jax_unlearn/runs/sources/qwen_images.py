"""Images through a Qwen3 tower: what `run` works on unless the checkpoint is CLIP's."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

import porting
from jax_unlearn.data.dataset import collect_images
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.features.extractor import Extractor
from jax_unlearn.features.samples import Features, Sides, images
from jax_unlearn.features.streaming import Gathering, Granularity
from jax_unlearn.objective.projectors import adapted_linears, load_paths
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import make_mesh


class ImageSession(Session):
    """A checkpoint's tower and a run's images.

    Raises:
        UserError: whatever is wrong with the checkpoint, the images or the settings, before the
            tower sees the first image.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.images = collect_images(config)
        tower = porting.load_vision_tower(config.checkpoint, config.dtype)
        shape = tower.config
        self.preprocessor = load_preprocessor(config.checkpoint, shape, config.max_pixels)
        adapted = adapted_linears(config.targets, config.linears, shape.mergers)
        paths = load_paths(tower, adapted)
        super().__init__(config, console, self.images, paths, adapted)
        names = [name for path in paths for name in path.shapes]
        self.mesh = make_mesh(config.mesh)
        self.extractor = Extractor(
            tower,
            self.preprocessor,
            names,
            self.mesh,
            config.workers,
            config.seed,
            config.batch_patches,
        )

    def linears_to_adapt(self) -> list[str]:
        config, mergers = self.config, [path.name for path in self.paths]
        adapted = adapted_linears(config.targets, config.linears, mergers)
        known = {name for path in self.paths for name in path.shapes}
        if missing := sorted(set(adapted) - known):
            raise UserError(f"--linears: nothing was extracted of {', '.join(missing)}")
        return adapted

    def train_features(self, granularity: Granularity) -> Sides:
        return Sides(
            self._train(self.images.forget, True, granularity),
            self._train(self.images.preserve, False, granularity),
        )

    def _train(
        self, files: Sequence[ImageFile], forget: bool, granularity: Granularity
    ) -> Features:
        mesh = self.mesh if self.extractor.on_device else None
        gathering = Gathering(self.linear_paths, forget, granularity, files, self.split, mesh)
        # Where a GELU lies between, no statistics of the rows will do.
        kept = (
            {p.last_tap for p in self.paths if not p.is_linear} if granularity == "tokens" else ()
        )
        what = f"Training images to {'forget' if forget else 'preserve'}"
        extract = self.extractor.extract
        # A target is by image to forget, and a GELU needs every row.
        some = not forget and all(path.is_linear for path in self.paths)
        keep = set(self._some(files)) if some else None
        stage = self.stage("forget" if forget else "preserve")
        return extract(files, self.reader, what, self.console, kept, gathering, keep, stage)

    def _some(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """As many as have their means kept, drawn with the seed."""
        most = self.config.keep_means
        if len(files) <= most:
            return list(files)
        chosen = np.random.default_rng(self.config.seed).choice(len(files), most, replace=False)
        return [files[i] for i in sorted(chosen)]

    def test_features(self) -> Sides:
        def side(files: Sequence[ImageFile], name: str) -> Features:
            what = f"Held-out images to {name}"
            stage = self.stage(f"{name}-held-out")
            extract = self.extractor.extract
            return extract(self._some(files), self.reader, what, self.console, stage=stage)

        data = self.images
        return Sides(side(data.forget_held_out, "forget"), side(data.preserve_held_out, "preserve"))

    def nothing(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The mean embedding of a blank image of the first image's size."""
        size = read_image(images(sides.forget)[0].source()).size
        taps = self.extractor.extract_image(self.preprocessor.blank(size))
        return {path.name: path.output(taps[path.last_tap]).mean(axis=0) for path in self.paths}

    def contents(self) -> Iterator[np.ndarray | bytes]:
        """The whole tower, and what says how it is used."""
        yield from map(np.asarray, jax.tree.leaves(self.extractor.state))
        for name in ("config.json", "preprocessor_config.json"):
            yield (self.config.checkpoint / name).read_bytes()

    @property
    def work(self) -> dict[str, int | float]:
        return self.extractor.work.metrics()
