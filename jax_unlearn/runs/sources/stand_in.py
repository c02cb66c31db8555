"""The images that take the place of a concept, from the data set of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import Sides, images
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.objective.counterparts import equalised
from jax_unlearn.runs.settings.config import RunConfig

# Fewer images have no covariance to speak of.
FEWEST = 10


def resolved(config: RunConfig, dataset: Dataset[ImageFile]) -> RunConfig:
    """The settings with the absolute path of a folder given by --stand-in."""
    if not dataset.stand_in or config.samples.stand_in is None:
        return config
    return config.replace(stand_in=str(Path(config.samples.stand_in).resolve()))


def images_of(train: Sides, pair: Counterpart) -> Int[np.ndarray, " n_f"]:
    """The images of a concept among those to forget."""
    return np.flatnonzero(np.isin(train.forget.labels, pair.forget))


def stand_in_files(
    linears: Sequence[FrozenLinear], train: Sides, pair: Counterpart, dataset: Dataset[ImageFile]
) -> list[ImageFile]:
    """The stand-in images: a folder's, those of the counterpart's classes, or the nearest ones.

    The nearest are as many as there are images to forget, nearest to their mean by the outputs of
    all projectors.
    """
    if dataset.stand_in:
        return dataset.stand_in
    if pair.preserve:
        return [file for file in dataset.preserve if file.label in pair.preserve]
    sides = train.image_means()
    outputs = equalised([one.output(sides.both(one.name)) for one in linears])
    own = images_of(train, pair)
    kept = outputs[~sides.is_forget]
    far = np.linalg.norm(kept - outputs[own].mean(axis=0), axis=1)
    nearest = np.argsort(far, kind="stable")[: max(FEWEST, len(own))]
    files = images(sides.preserve)
    return [files[i] for i in sorted(nearest)]
