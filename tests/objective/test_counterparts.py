"""Which class a concept is compared with, or moved onto."""

from pathlib import Path

import numpy as np

from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import SampleFeatures, Sides, TapRows
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.objective.counterparts import counterparts
from jax_unlearn.objective.projectors import projectors_of

LINEAR = FrozenLinear("merger.linear_fc2", np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
PROJECTORS = projectors_of([LINEAR])


def side(places):
    """Two images of each class, at a place."""
    files, rows = [], []
    for label, place in places.items():
        for i in range(2):
            files.append(ImageFile(Path(f"{label}{i}.png"), label))
            rows.append(np.array(place, np.float32) + 0.01 * i)
    tap = TapRows(np.stack(rows), np.arange(len(rows)))
    return SampleFeatures(tuple(files), {LINEAR.name: tap})


def found(forget, preserve, concept=None, stand_in=None):
    return counterparts(PROJECTORS, Sides(side(forget), side(preserve)), concept, stand_in)


SHAPES = {
    "red circle": (0, 0, 1), "blue circle": (0, 1, 1),
    "red square": (0, 0, 5), "blue square": (0, 1, 5), "cat": (9, 9, 9),
}  # fmt: skip
TRIANGLES = {"red triangle": (0, 0, 0), "blue triangle": (0, 1, 0)}


def test_a_concept_is_compared_with_the_nearest_that_has_the_same_other_words():
    (one,) = found(TRIANGLES, SHAPES, "triangle")
    classes = ("red triangle", "blue triangle")
    assert one == Counterpart("triangle", classes, "circle", ("blue circle", "red circle"))


def test_a_word_that_lacks_one_of_the_other_words_is_no_counterpart():
    fewer = {name: place for name, place in SHAPES.items() if name != "blue circle"}
    (one,) = found(TRIANGLES, fewer, "triangle")
    assert (one.name, one.preserve) == ("square", ("blue square", "red square"))


def test_a_whole_class_is_compared_with_the_nearest_class():
    (one,) = found({"red triangle": (0, 0, 0)}, SHAPES, "red triangle")
    assert (one.name, one.preserve) == ("red circle", ("red circle",))


def test_without_a_concept_every_class_is_one():
    first, second = found({"dog": (9, 9, 8), "disc": (0, 0, 2)}, SHAPES)
    assert (first.concept, first.preserve) == ("dog", ("cat",))
    assert (second.concept, second.preserve) == ("disc", ("red circle",))


def test_underscores_count_as_spaces():
    (one,) = found({"white_shark": (0, 0, 0)}, {"great_white_shark": (9, 9, 9), "cat": (0, 0, 1)})
    assert one.name == "cat"


def test_a_class_without_a_sample_may_be_named():
    sides = Sides(side(TRIANGLES), side(SHAPES))
    (one,) = counterparts(PROJECTORS, sides, "triangle", "oval", {"red oval", *SHAPES})
    assert one.preserve == ("red oval",)


def test_classes_to_keep_may_be_named_or_be_a_folder():
    (named,) = found(TRIANGLES, SHAPES, "triangle", "square")
    assert (named.name, named.preserve) == ("square", ("blue square", "red square"))
    (folder,) = found(TRIANGLES, SHAPES, "triangle", "/some/folder")
    assert (folder.name, folder.preserve) == ("/some/folder", ())


def test_images_to_keep_without_classes_are_compared_with_as_a_whole():
    (one,) = found({"forget": (0, 0, 0)}, {"preserve": (1, 1, 1)})
    assert one == Counterpart("forget", ("forget",), "preserve", ())
