"""CLIP: names to forget through the text side, or images through the image side."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console

from jax_unlearn.data.dataset import collect_images, collect_prompts
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import prompts
from jax_unlearn.features.clip_encoder import ClipEncoder
from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.features.streaming import Granularity, SideStatistics
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.clip_common import (
    IMAGE,
    TEXT,
    EmbeddedImages,
    EmbeddedNames,
    check_targets,
    shown_folders,
)
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runtime.errors import UserError


class TextSession(EmbeddedNames):
    """Names through the text encoder, and the images that prove the result through the other."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.prompts = collect_prompts(config)
        self.encoder = ClipEncoder(config.checkpoint, config.dtype, console)
        self.path, self.visual = (self.encoder.projection(name) for name in (TEXT, IMAGE))
        adapted = check_targets(config, TEXT)
        # The names themselves, so that the run does not depend on the file that they came from.
        config = replace(
            config,
            targets=tuple(adapted),
            forget_text=tuple(dict.fromkeys(p.label for p in self.prompts.forget)),
            preserve_text=tuple(dict.fromkeys(p.label for p in self.prompts.preserve)),
        )
        super().__init__(config, console, self.prompts, [self.path], adapted)
        self.shown = {}
        self.pictured = {f: find_images(f, f.name) for f in shown_folders(config)}
        self.others = {
            folder: self.encoder.texts(
                prompts(class_names(self.pictured[folder]), [config.template])
            )
            for folder in config.other_images
        }
        if config.images:
            names = (*config.forget_text, *config.preserve_text)
            check_images(config.images, self.pictured[config.images], names)

    def train_features(self, granularity: Granularity) -> Sides:
        """A prompt is one row whatever the granularity."""
        texts = self.encoder.texts
        return gathered(self, Sides(texts(self.prompts.forget), texts(self.prompts.preserve)))

    def test_features(self) -> Sides:
        """The prompts to be judged in; the folders' images are read here too, before training."""
        for folder, files in self.pictured.items():
            self.shown[folder] = self.encoder.images(files, self.reader, f"Images of {folder.name}")
        texts = self.encoder.texts
        return Sides(texts(self.prompts.forget_held_out), texts(self.prompts.preserve_held_out))

    def contents(self) -> Iterator[np.ndarray]:
        return self.encoder.contents()

    def nothing(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The embedding of ""."""
        return {TEXT: self.path.output(self.encoder.text_taps([""]))[0]}


def gathered(session: Session, sides: Sides) -> Sides:
    """With the statistics of both sides' rows, one a sample."""

    def side(features: SampleFeatures, forget: bool) -> SampleFeatures:
        gathering = SideStatistics(
            session.linear_paths, forget, "images", features.files, session.split
        )
        for i in range(len(features.files)):
            gathering.add(i, {name: tap.x[i : i + 1] for name, tap in features.taps.items()})
        return gathering.finish(features, range(len(features.files)))

    return Sides(side(sides.forget, True), side(sides.preserve, False))


def class_names(files: Sequence[ImageFile]) -> list[str]:
    return sorted({file.label for file in files})


def check_images(folder: Path, files: Sequence[ImageFile], names: Sequence[str]) -> None:
    """Warn of names and sub-folders without each other.

    Raises:
        UserError: no sub-folder is called like a name.
    """
    found = set(class_names(files))
    if not found & set(names):
        raise UserError(f"{folder}: none of its sub-folders is one of the names; rename them")
    if missing := sorted(set(names) - found):
        warnings.warn(f"{folder} has no images of {', '.join(missing)}", stacklevel=2)
    if spare := sorted(found - set(names)):
        warnings.warn(
            f"{folder}: left out, for they are no names: {', '.join(spare)}", stacklevel=2
        )


class ClipImageSession(EmbeddedImages):
    """Images through the image encoder, and their classes' names through the other."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.images = collect_images(config)
        self.encoder = ClipEncoder(config.checkpoint, config.dtype, console)
        self.names = self._names(config.template)
        self.path, self.text = (self.encoder.projection(name) for name in (IMAGE, TEXT))
        adapted = check_targets(config, IMAGE)
        config = replace(config, targets=tuple(adapted))
        super().__init__(config, console, self.images, [self.path], adapted)

    def _names(self, template: str) -> SampleFeatures | None:
        labels = self.images.labels()
        if {"forget", "preserve"} & set(labels):
            return None
        return self.encoder.texts(prompts(labels, [template]))

    def train_features(self, granularity: Granularity) -> Sides:
        """An image is one row whatever the granularity."""
        sides = self._sides(self.images.forget, self.images.preserve, "Training")
        return gathered(self, sides)

    def test_features(self) -> Sides:
        data = self.images
        return self._sides(data.forget_held_out, data.preserve_held_out, "Held-out")

    def _sides(
        self, forget: Sequence[ImageFile], preserve: Sequence[ImageFile], what: str
    ) -> Sides:
        return Sides(
            self.encoder.images(forget, self.reader, f"{what} images to forget"),
            self.encoder.images(preserve, self.reader, f"{what} images to preserve"),
        )

    def contents(self) -> Iterator[np.ndarray]:
        return self.encoder.contents()

    def nothing(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The embedding of a blank image."""
        taps = self.encoder.image_batch([self.encoder.blank()]).taps[IMAGE]
        return {IMAGE: self.path.output(np.asarray(taps, np.float32))[0]}
