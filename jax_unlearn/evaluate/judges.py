"""Judges: evaluate an adapter on held-out samples, from `Extracted` alone."""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.maps import maps
from jax_unlearn.evaluate.probes import Split, drift, drift_by_class, read_splits
from jax_unlearn.evaluate.score import Score, fit_probes, score
from jax_unlearn.evaluate.two_classes import reidentify
from jax_unlearn.evaluate.zero_shot import compare
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides, images
from jax_unlearn.features.similarity import Named, classify
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.objective.projectors import linear_change, projectors_of


@runtime_checkable
class Judge(Protocol):
    """Evaluates adapters on the held-out samples of an `Extracted`."""

    def evaluate(self, adapter: LoraAdapter) -> dict[str, Any]:
        """The evaluation part of metrics.json."""

    def score(self, adapter: LoraAdapter) -> Score:
        """A score that is cheap enough for every setting of a sweep."""

    def pictures(self) -> list[list[ImageFile]]:
        """Rows of images for the report: forget images, then preserve images."""


def judge_of(extracted: Extracted, samples: SampleSettings) -> Judge:
    """The judge for a kind of samples: zero-shot accuracy for names, probes for images."""
    if extracted.kind == "clip_names":
        return ZeroShotJudge(extracted, samples)
    return ProbeJudge(extracted)


def shown_folders(samples: SampleSettings) -> list[Path]:
    """Folders whose images are classified before and after, without duplicates."""
    return [*dict.fromkeys(folder for folder in (samples.images, *samples.other_images) if folder)]


def splits(extracted: Extracted, sides: Sides, adapter: LoraAdapter) -> dict[str, Split]:
    """Mean embeddings by every projector, before and after the edit; `sides` from `image_means`."""
    found = {}
    for projector in projectors_of(extracted.linears):
        last = projector.last
        before = last.output(sides.both(last.name))
        changes = [projector.change(side, adapter) for side in (sides.forget, sides.preserve)]
        after = before + np.concatenate(changes)
        found[projector.name] = Split(before, after, sides.labels, sides.is_forget)
    return found


class ProbeJudge:
    """Probes on the images' mean embeddings, and zero-shot accuracy for CLIP with class names."""

    def __init__(self, extracted: Extracted) -> None:
        self.extracted = extracted
        self.train, self.test = extracted.train.image_means(), extracted.test

    def evaluate(self, adapter: LoraAdapter) -> dict[str, Any]:
        """The accuracy of the probes, and with CLIP zero-shot accuracy."""
        test = splits(self.extracted, self.test, adapter)
        read = read_splits(splits(self.extracted, self.train, adapter), test)
        read["concepts"] = len(self.extracted.counterparts)
        read["reidentification"] = reidentify(self.extracted, adapter)
        read["drift_by_class"] = drift_by_class(test)
        onto = {label for pair in self.extracted.counterparts for label in pair.preserve}
        read["maps"] = maps(test, onto)
        names = self.extracted.judged.get("names")
        if names is None:
            return read
        (split,) = test.values()
        (text,) = self.extracted.judged_linears
        classes = Named(text.output(names.taps[text.name].x), names.labels)
        before, after = Named(split.before, split.labels), Named(split.after, split.labels)
        forget = sorted(set(self.test.forget.labels))
        scores = compare(before, classes, after, classes, forget)
        return read | {"zero_shot": scores["zero_shot"] | {"other_data": {}, "on": "images"}}

    def score(self, adapter: LoraAdapter) -> Score:
        """Score with linear probes fitted once, on the original features."""
        return score(self._probes, splits(self.extracted, self.test, adapter))

    @cached_property
    def _probes(self) -> dict[str, Any]:
        return fit_probes(splits(self.extracted, self.train, NO_CHANGE))

    def pictures(self) -> list[list[ImageFile]]:
        """The held-out images whose files still exist."""
        sides = (self.test.forget, self.test.preserve)
        return [[file for file in images(side) if file.path.is_file()] for side in sides]


class ZeroShotJudge:
    """Zero-shot accuracy of images after names are forgotten; without images, of the names.

    Args:
        extracted: the features.
        samples: gives the folders whose images are in `extracted.judged`.
    """

    def __init__(self, extracted: Extracted, samples: SampleSettings) -> None:
        self.extracted, self.samples = extracted, samples
        self.test = extracted.test
        (self.text,), self.visual = extracted.linears, extracted.judged_linears
        folders = shown_folders(samples)
        self.shown = {f: extracted.judged[f"shown.{i}"] for i, f in enumerate(folders)}
        others = [*dict.fromkeys(samples.other_images)]
        self.others = {f: extracted.judged[f"others.{i}"] for i, f in enumerate(others)}

    def evaluate(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Zero-shot accuracy with the held-out template, before and after.

        Without --images the original embeddings of the names are classified instead.
        """
        (split,) = splits(self.extracted, self.test, adapter).values()
        before, after = Named(split.before, split.labels), Named(split.after, split.labels)
        forget = sorted(set(self.test.forget.labels))
        folder = self.samples.images
        shown = self._images(folder, before) if folder else before
        scores = compare(shown, before, shown, after, forget)
        others = {str(f): self._other(f, adapter) for f in self.samples.other_images}
        on = "images" if folder else "names"
        scores["zero_shot"] |= {"other_data": others, "on": on}
        return scores

    def score(self, adapter: LoraAdapter) -> Score:
        """Zero-shot accuracy, and the drift of the preserve names."""
        read = self.evaluate(adapter)
        (split,) = splits(self.extracted, self.test, adapter).values()
        keep = ~split.is_forget
        moved = drift(split.before[keep], split.after[keep])["relative"]
        forget, preserve = read["forget"], read["preserve"]["accuracy_after"]
        return Score(
            forget["accuracy_before"],
            forget["accuracy_after"],
            forget["chance"],
            preserve,
            moved,
        )

    def pictures(self) -> list[list[ImageFile]]:
        """Images of the forget names, and of the preserve names."""
        if self.samples.images is None:
            return []
        files = [f for f in images(self.shown[self.samples.images]) if f.path.is_file()]
        named = [set(side.labels) for side in (self.test.forget, self.test.preserve)]
        return [[file for file in files if file.label in labels] for labels in named]

    def _images(self, folder: Path, names: Named) -> Named:
        """Embeddings of a folder's images whose class is among the names."""
        features = self.shown[folder]
        known = np.isin(features.labels, names.labels)
        (visual,) = self.visual
        embeddings = visual.output(features.taps[visual.name].x)
        return Named(embeddings[known], features.labels[known])

    def _other(self, folder: Path, adapter: LoraAdapter) -> dict[str, float]:
        """Accuracy on another data set, whose names are its sub-folders."""
        features, text = self.others[folder], self.text
        original = text.output(features.taps[text.name].x)
        names = Named(original, features.labels)
        after = Named(original + linear_change(text, features, adapter), features.labels)
        shown = self._images(folder, names)
        right = [classify(shown.embeddings, n) == shown.labels for n in (names, after)]
        return {"before": float(right[0].mean()), "after": float(right[1].mean())}
