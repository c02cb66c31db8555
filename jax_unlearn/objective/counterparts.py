"""Choose the class to keep that a concept is compared with, or moved onto."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float

from jax_unlearn.data.class_names import matches, spaced
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.objective.projectors import Projector

Embeddings = Float[np.ndarray, "_ _"]


def counterparts(
    projectors: Sequence[Projector],
    sides: Sides,
    concept: str | None,
    stand_in: str | None = None,
    classes: Collection[str] = (),
) -> tuple[Counterpart, ...]:
    """The counterpart of each concept: the one that is named, or else the nearest class.

    With `concept` all images to forget are one concept, otherwise every class is one. If the
    concept's classes differ in other words (red, blue, … triangle), its counterpart consists of
    the classes with the same other words (red, blue, … circle), if there are any.

    Args:
        projectors: the projectors whose outputs are compared.
        sides: features of the training samples, one row each at the projectors' last Linears.
        concept: the words of the concept, if they were given.
        stand_in: words of the counterpart's classes, or the path of a folder.
        classes: all classes to keep, of which `sides` may have some only.
    """
    forgotten, kept = ([*dict.fromkeys(map(str, side.labels))] for side in
                       (sides.forget, sides.preserve))  # fmt: skip
    groups = {concept: forgotten} if concept else {label: [label] for label in forgotten}
    if stand_in is not None:
        # A name without a class is that of a folder; the data set has checked that there is one.
        named = tuple(sorted(matches(stand_in, classes or kept)))
        return tuple(Counterpart(c, tuple(f), stand_in, named) for c, f in groups.items())
    if len(kept) == 1:
        # Nothing tells the images to keep apart.
        return tuple(Counterpart(c, tuple(f), kept[0], ()) for c, f in groups.items())
    embedded = Embedded.of(projectors, sides)
    labels = sides.forget.labels
    return tuple(
        embedded.nearest(words, group, np.isin(labels, group)) for words, group in groups.items()
    )


@dataclass(frozen=True)
class Embedded:
    """Samples by all projectors: those to forget, and the mean of each class to keep.

    Attributes:
        forget: [n, e] the samples to forget.
        labels: their classes.
        means: [classes, e] the means of the classes to keep.
        counts: the number of samples of each class to keep, by its name.
    """

    forget: Embeddings
    labels: np.ndarray
    means: Embeddings
    counts: Mapping[str, int]

    @classmethod
    def of(cls, projectors: Sequence[Projector], sides: Sides) -> "Embedded":
        """From features with one row each at the projectors' last Linears."""
        outputs = equalised([one.last.output(sides.both(one.last.name)) for one in projectors])
        own, kept = outputs[sides.is_forget], outputs[~sides.is_forget]
        return cls(own, sides.forget.labels, *class_means(kept, sides.preserve.labels))

    def before(self, group: Collection[str]) -> "Embedded":
        """The same with every class to keep, but those of `group`, as if nothing else were
        forgotten."""
        others = ~np.isin(self.labels, [*group, *self.counts])
        means, counts = class_means(self.forget[others], self.labels[others])
        return replace(
            self, means=np.concatenate([self.means, means]), counts={**self.counts, **counts}
        )

    def nearest(self, words: str, group: Sequence[str], own: Bool[np.ndarray, " n"]) -> Counterpart:
        """The counterpart of the concept of these words, whose classes are `group`.

        Args:
            words: the concept.
            group: its classes.
            own: which of the samples to forget it is compared by.
        """
        kept = [*self.counts]
        place = {name: i for i, name in enumerate(kept)}
        of_words = with_same_words(words, group, kept)
        means, names = self.means, kept
        if of_words:
            names = [*of_words]
            rows = [[place[label] for label in labels] for labels in of_words.values()]
            counts = [[self.counts[label] for label in labels] for labels in of_words.values()]
            means = np.stack([np.average(self.means[i], axis=0, weights=n)
                              for i, n in zip(rows, counts, strict=True)])  # fmt: skip
        far = np.linalg.norm(means - self.forget[own].mean(axis=0), axis=1)
        name = names[int(far.argmin())]
        return Counterpart(words, tuple(group), name, tuple(sorted(of_words.get(name, [name]))))


def class_means(outputs: Embeddings, labels: np.ndarray) -> tuple[Embeddings, dict[str, int]]:
    """The mean of each class and its number of samples, in the order in which classes appear.

    That order decides between equal distances.
    """
    names, first, place = np.unique(labels, return_index=True, return_inverse=True)
    sums = np.zeros((len(names), outputs.shape[1]))
    np.add.at(sums, place, outputs)
    counts = np.bincount(place, minlength=len(names))
    order = np.argsort(first)
    return sums[order] / counts[order][:, None], {str(names[i]): int(counts[i]) for i in order}


def equalised(outputs: Sequence[Embeddings]) -> Embeddings:
    """The outputs of all projectors side by side, each centred and with the same mean square."""
    centred = [x - x.mean(axis=0) for x in outputs]
    return np.concatenate([x / (x.std() * np.sqrt(x.shape[1])) for x in centred], axis=1)


def with_same_words(
    concept: str, forgotten: Collection[str], kept: Collection[str]
) -> Mapping[str, list[str]]:
    """Classes to keep that differ from those to forget by one word in place of the concept's.

    For the concept "triangle" with red and blue triangles: {"circle": ["red circle", "blue
    circle"]}, for every such word that occurs with the other words of each class to forget.
    """
    ours = words_of(concept)
    rests = [words_of(label) - ours for label in forgotten]
    if not all(rests):
        return {}
    found: dict[str, dict[frozenset[str], str]] = {}
    for label in kept:
        words = words_of(label)
        for rest in rests:
            if rest < words and len(words - rest) == 1:
                (other,) = words - rest
                found.setdefault(other, {})[rest] = label
    return {
        word: [*of_rests.values()]
        for word, of_rests in found.items()
        if set(of_rests) == set(rests)
    }


@cache
def words_of(label: str) -> frozenset[str]:
    return frozenset(spaced(label).lower().split())
