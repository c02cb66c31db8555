"""CLIP: names to forget through the text side, or images through the image side."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from jax_unlearn.clip_encode import IMAGE, TEXT, ClipEncoder
from jax_unlearn.config import RunConfig
from jax_unlearn.data.folder import find_images
from jax_unlearn.data.image import ImageFile
from jax_unlearn.data.prompts import prompts
from jax_unlearn.dataset import collect_images, collect_prompts
from jax_unlearn.errors import UserError
from jax_unlearn.evaluate.readers import drift, read_splits
from jax_unlearn.evaluate.score import Score
from jax_unlearn.evaluate.zero_shot import Named, by_class, classify, near_names, shares, unit
from jax_unlearn.gather import Gathering, Granularity
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.projection import ProjectionPath
from jax_unlearn.rows import Features, images
from jax_unlearn.session import Session, Sides

NEIGHBOURS = 5
# The noise of the published scheme has a stream of its own (see session.TARGET_STREAM).
NOISE_STREAM = 2
NOISE, TRIES = 0.5, 1000


def check_targets(config: RunConfig, name: str) -> list[str]:
    """The projection to adapt, as a list.

    Raises:
        UserError: --targets names another.
    """
    # The published scheme's "merger" is the one Linear that there is.
    known = {"all", name} | ({"merger"} if config.preset == "faithful" else set())
    if config.targets and set(config.targets) <= known:
        return [name]
    raise UserError(f"--targets {' '.join(config.targets)}: must be all or {name} here")


class TextSession(Session):
    """Names to forget and to keep, through `text_projection`; images prove the result."""

    model_type = "clip"

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.prompts = collect_prompts(config)
        self.encoder = ClipEncoder(config.checkpoint, config.dtype, console)
        self.path = ProjectionPath(TEXT, *self.encoder.clip.linear(TEXT))
        self.visual = ProjectionPath(IMAGE, *self.encoder.clip.linear(IMAGE))
        self.seen: dict[Path, Features] = {}
        adapted = check_targets(config, TEXT)
        # The names themselves, so that the run does not depend on the file that they came from.
        config = replace(
            config,
            targets=tuple(adapted),
            forget_text=tuple(dict.fromkeys(p.label for p in self.prompts.forget)),
            preserve_text=tuple(dict.fromkeys(p.label for p in self.prompts.preserve)),
        )
        super().__init__(config, console, self.prompts, [self.path], adapted)
        folders = [folder for folder in (config.images, *config.other_images) if folder]
        self.pictured = {folder: find_images(folder, folder.name) for folder in folders}
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
        for folder in self.pictured:
            self._features(folder)
        texts = self.encoder.texts
        return Sides(texts(self.prompts.forget_held_out), texts(self.prompts.preserve_held_out))

    def contents(self) -> Iterator[np.ndarray]:
        return self.encoder.contents()

    def blank(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The L2-normalised embedding of "", moved at random while it names what is forgotten.

        Source: the published scheme, whose noise is 0.5 · N(0, 1) for each component.

        Raises:
            UserError: no such point was found.
        """
        target = unit(self.path.output(self.encoder.text_taps([""])))
        names = Named(self.path.output(sides.both(TEXT)), sides.labels)
        key = jax.random.fold_in(jax.random.key(self.config.seed), NOISE_STREAM)
        for subkey in jax.random.split(key, TRIES):
            if classify(target, names)[0] not in sides.forget.labels:
                return {TEXT: target[0]}
            target = target + NOISE * np.asarray(jax.random.normal(subkey, target.shape))
        raise UserError(
            'every point near "" names what is to be forgotten; choose another --target'
        )

    def pictures(self, test: Sides) -> list[list[ImageFile]]:
        if self.config.images is None:
            return []
        files = images(self._features(self.config.images))
        named = [set(side.labels) for side in (test.forget, test.preserve)]
        return [[file for file in files if file.label in labels] for labels in named]

    def evaluate(self, train: Sides, test: Sides, adapter: LoraAdapter) -> dict[str, Any]:
        """Zero-shot accuracy with the held-out template, before and after.

        Without --images the names' own original embeddings are classified in their stead.
        """
        split = self.splits(test, adapter)[TEXT]
        before, after = Named(split.before, split.labels), Named(split.after, split.labels)
        forget = sorted(set(test.forget.labels))
        shown = self._images(self.config.images, before) if self.config.images else before
        scores = compare(shown, before, shown, after, forget)
        others = {str(f): self._other(f, adapter) for f in self.config.other_images}
        scores["zero_shot"] |= {
            "other_data": others,
            "on": "images" if self.config.images else "names",
        }
        return scores

    def scorer(self, train: Sides, test: Sides) -> Callable[[LoraAdapter], Score]:
        """Zero-shot accuracy in place of a probe's."""

        def score(adapter: LoraAdapter) -> Score:
            read, (split,) = (
                self.evaluate(train, test, adapter),
                self.splits(test, adapter).values(),
            )
            keep = ~split.is_forget
            moved = drift(split.before[keep], split.after[keep])["relative"]
            forget, preserve = read["forget"], read["preserve"]["accuracy_after"]
            return Score(forget["accuracy_after"], forget["chance"], preserve, moved)

        return score

    def _features(self, folder: Path) -> Features:
        """Every readable image of a folder, embedded once."""
        if folder not in self.seen:
            what = f"Images of {folder.name}"
            self.seen[folder] = self.encoder.images(self.pictured[folder], self.reader, what)
        return self.seen[folder]

    def _images(self, folder: Path, names: Named) -> Named:
        """Embeddings of a folder's images whose class is one of the names."""
        features = self._features(folder)
        known = np.isin(features.labels, names.labels)
        embeddings = self.visual.output(features.taps[IMAGE].x)
        return Named(embeddings[known], features.labels[known])

    def _other(self, folder: Path, adapter: LoraAdapter) -> dict[str, float]:
        """Accuracy on another data set, whose names are its own sub-folders."""
        features = self.others[folder]
        original = self.path.output(features.taps[TEXT].x)
        names = Named(original, features.labels)
        after = Named(original + self.path.change(features, adapter), features.labels)
        shown = self._images(folder, names)
        right = [classify(shown.embeddings, n) == shown.labels for n in (names, after)]
        return {"before": float(right[0].mean()), "after": float(right[1].mean())}


def gathered(session: Session, sides: Sides) -> Sides:
    """With the statistics of both sides' rows, one a sample."""

    def side(features: Features, forget: bool) -> Features:
        gathering = Gathering(session.linear_paths, forget, "images", features.files, session.split)
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


class ClipImageSession(Session):
    """Images to forget and to keep, through `visual_projection`."""

    model_type = "clip"

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.images = collect_images(config)
        self.encoder = ClipEncoder(config.checkpoint, config.dtype, console)
        self.names = self._names(config.template)
        self.path = ProjectionPath(IMAGE, *self.encoder.clip.linear(IMAGE))
        self.text = ProjectionPath(TEXT, *self.encoder.clip.linear(TEXT))
        adapted = check_targets(config, IMAGE)
        config = replace(config, targets=tuple(adapted))
        super().__init__(config, console, self.images, [self.path], adapted)

    def _names(self, template: str) -> Features | None:
        """The classes as prompts; None where folders without sub-folders give none."""
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

    def blank(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The embedding of a blank image."""
        taps = self.encoder.image_batch([self.encoder.blank()]).taps[IMAGE]
        return {IMAGE: self.path.output(np.asarray(taps, np.float32))[0]}

    def evaluate(self, train: Sides, test: Sides, adapter: LoraAdapter) -> dict[str, Any]:
        """What readers find, and zero-shot accuracy with the classes' names as prompts."""
        splits = self.splits(test, adapter)
        read = read_splits(self.splits(train, adapter), splits)
        if self.names is None:
            return read
        split = splits[IMAGE]
        names = Named(self.text.output(self.names.taps[TEXT].x), self.names.labels)
        before, after = Named(split.before, split.labels), Named(split.after, split.labels)
        forget = sorted(set(test.forget.labels))
        scores = compare(before, names, after, names, forget)
        return read | {"zero_shot": scores["zero_shot"] | {"other_data": {}, "on": "images"}}


def compare(
    images_before: Named,
    names_before: Named,
    images_after: Named,
    names_after: Named,
    forget: Sequence[str],
) -> dict[str, Any]:
    """The zero-shot part of metrics.json, and the headline made from it."""
    neighbours = near_names(names_before, forget, NEIGHBOURS)
    before = shares(images_before, names_before, forget, neighbours)
    after = shares(images_after, names_after, forget, neighbours)
    classes = [
        by_class(i, n, forget)
        for i, n in ((images_before, names_before), (images_after, names_after))
    ]
    chance = 1 / len(np.unique(names_before.labels))
    return {
        "forget": {
            "accuracy_before": before["forget"],
            "accuracy_after": after["forget"],
            "chance": chance,
        },
        "preserve": {"accuracy_before": before["others"], "accuracy_after": after["others"]},
        "chance": {"forget": chance, "preserve": chance, "neighbours": chance},
        "neighbours": neighbours,
        "zero_shot": {
            "chance": chance,
            "neighbours": neighbours,
            "before": before,
            "after": after,
            "classes": {n: {"before": classes[0][n], "after": classes[1][n]} for n in forget},
        },
    }
