"""CLIP once everything is embedded: targets, and what the result is judged by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.probes import drift, read_splits
from jax_unlearn.evaluate.score import Score
from jax_unlearn.evaluate.zero_shot import compare
from jax_unlearn.features.samples import SampleFeatures, Sides, images
from jax_unlearn.features.similarity import Named, classify, unit
from jax_unlearn.models.clip.model import LINEARS
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear_projector import ProjectionPath
from jax_unlearn.objective.projector import Path as EmbeddingPath
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.grid import DRAWN

TEXT, IMAGE = LINEARS
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


def shown_folders(config: RunConfig) -> list[Path]:
    """Folders whose images are classified before and after, each once."""
    return [*dict.fromkeys(folder for folder in (config.images, *config.other_images) if folder)]


class EmbeddedNames(Session):
    """Names to forget and to keep, through `text_projection`; images prove the result.

    shown: images of --images and --other-images, by the folder; others: the latter's names.
    """

    model_type = "clip"
    drawn = DRAWN
    path: ProjectionPath
    visual: ProjectionPath
    shown: dict[Path, SampleFeatures]
    others: dict[Path, SampleFeatures]

    @property
    def frozen(self) -> list[EmbeddingPath]:
        return [self.path, self.visual]

    @property
    def judged_by(self) -> dict[str, SampleFeatures]:
        shown = {f"shown.{i}": features for i, features in enumerate(self.shown.values())}
        return shown | {f"others.{i}": names for i, names in enumerate(self.others.values())}

    def blank(self, sides: Sides) -> dict[str, Float[np.ndarray, " e"]]:
        """The L2-normalised embedding of "", moved at random while it names what is forgotten.

        Source: the published scheme, whose noise is 0.5 · N(0, 1) for each component.

        Raises:
            UserError: no such point was found.
        """
        target = unit(self.nothing(sides)[TEXT][None])
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
        files = images(self.shown[self.config.images])
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

    def _images(self, folder: Path, names: Named) -> Named:
        """Embeddings of a folder's images whose class is one of the names."""
        features = self.shown[folder]
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


class EmbeddedImages(Session):
    """Images to forget and to keep, through `visual_projection`.

    names: the classes as prompts; None where folders without sub-folders give none.
    """

    model_type = "clip"
    path: ProjectionPath
    text: ProjectionPath
    names: SampleFeatures | None

    @property
    def frozen(self) -> list[EmbeddingPath]:
        return [self.path, self.text]

    @property
    def judged_by(self) -> dict[str, SampleFeatures]:
        return {"names": self.names} if self.names else {}

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
