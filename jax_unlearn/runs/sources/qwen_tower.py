"""A Qwen3 tower that is ready to run over images, as a run's settings ask for it."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

import porting
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.data.processor_config import processor_file
from jax_unlearn.features.extractor import Extractor
from jax_unlearn.objective.projectors import adapted_linears, frozen_linears, projectors_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.mesh import make_mesh


class QwenTower:
    """The tower of a run's checkpoint, with its adaptable Linears.

    Raises:
        UserError: the checkpoint or the settings are refused.
    """

    def __init__(self, config: RunConfig) -> None:
        self.checkpoint = config.samples.checkpoint
        extraction, objective = config.extraction, config.objective
        tower = porting.load_vision_tower(self.checkpoint, extraction.dtype)
        self.preprocessor = load_preprocessor(self.checkpoint, tower.config, extraction.max_pixels)
        adapted = adapted_linears(objective.targets, objective.linears, tower.config.mergers)
        self.linears = tuple(frozen_linears(tower, adapted))
        self.projectors = projectors_of(self.linears)
        self.mesh = make_mesh(config.execution.mesh)
        self.extractor = Extractor(
            tower,
            self.preprocessor,
            [linear.name for linear in self.linears],
            extraction,
            self.mesh,
            config.execution.workers,
            config.solver.seed,
        )

    def contents(self) -> Iterator[np.ndarray | bytes]:
        """The contents of the tower's weights and of the checkpoint's config files."""
        yield from map(np.asarray, jax.tree.leaves(self.extractor.state))
        config = local_checkpoint(self.checkpoint) / "config.json"
        for path in (config, processor_file(self.checkpoint)):
            yield path.read_bytes()

    def blank(self, image: ImageFile) -> dict[str, Float[np.ndarray, " e"]]:
        """Mean embedding by each projector of a blank image of the size of this one."""
        size = read_image(image.source()).size
        taps = self.extractor.extract_image(self.preprocessor.blank(size))
        last = [projector.last for projector in self.projectors]
        return {one.projector: one.output(taps[one.name]).mean(axis=0) for one in last}
