"""Choose the class to keep that a concept is compared with, or moved onto."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

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
    outputs = equalised([one.last.output(sides.both(one.last.name)) for one in projectors])
    labels = sides.labels
    found = []
    for words, group in groups.items():
        candidates = with_same_words(words, group, kept) or {label: [label] for label in kept}
        own = outputs[np.isin(labels, group) & sides.is_forget].mean(axis=0)
        far = {
            name: float(np.linalg.norm(
                outputs[np.isin(labels, own_labels) & ~sides.is_forget].mean(axis=0) - own
            ))
            for name, own_labels in candidates.items()
        }  # fmt: skip
        name = min(far, key=far.__getitem__)
        found.append(Counterpart(words, tuple(group), name, tuple(sorted(candidates[name]))))
    return tuple(found)


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
    rests = [frozenset(words_of(label) - ours) for label in forgotten]
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


def words_of(label: str) -> set[str]:
    return set(spaced(label).lower().split())
