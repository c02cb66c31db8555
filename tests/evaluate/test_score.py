"""A score's numbers on embeddings whose content is known."""

import numpy as np
import pytest

from jax_unlearn.evaluate.probes import Split
from jax_unlearn.evaluate.score import fit_probes, other_words, score

CLASSES = ("red triangle", "blue triangle", "red circle", "blue circle")


@pytest.mark.parametrize(
    ("forgotten", "rest"),
    [
        (CLASSES[:2], {"red triangle": {"red"}, "blue triangle": {"blue"}}),
        (
            ("Red  Triangle", "red circle"),
            {"Red  Triangle": {"triangle"}, "red circle": {"circle"}},
        ),
        # One class says nothing but itself, these two nothing in common, and this one no more.
        (("cat",), {}),
        (("red triangle", "blue circle"), {}),
        (("triangle", "red triangle"), {}),
    ],
)
def test_what_else_the_forgotten_classes_say(forgotten, rest):
    assert other_words(forgotten) == rest


def split(after=lambda place: place):
    """Each class about its own corner; `after` says about whose it is then."""
    labels = np.repeat(CLASSES, 20)
    place = np.repeat(np.arange(4), 20)
    noise = np.random.default_rng(0).normal(size=(80, 4)) / 100
    corners = [np.float32(np.eye(4)[p] + noise) for p in (place, after(place))]
    return Split(*corners, labels, np.char.endswith(labels, "triangle"))


def test_a_shape_that_is_gone_and_a_colour_that_stays():
    train, test = {"p": split()}, {"p": split(lambda place: np.where(place < 2, place + 2, place))}
    found = score(fit_probes(train), test)
    assert (found.before, found.forget, found.chance) == (1.0, 0.0, 0.5)
    assert (found.preserve, found.drift) == (1.0, 0.0)
    assert (found.selectivity_before, found.selectivity) == (1.0, 1.0)


def test_a_colour_that_is_gone_too():
    # All triangles become red circles.
    train, test = {"p": split()}, {"p": split(lambda place: np.where(place < 2, 2, place))}
    found = score(fit_probes(train), test)
    assert (found.forget, found.preserve) == (0.0, 1.0)
    assert (found.selectivity_before, found.selectivity) == (1.0, 0.5)


def test_the_worst_projector_decides():
    gone, whole = split(lambda place: np.where(place < 2, 2, place)), split()
    moved = split(lambda place: np.where(place == 3, 2, place))
    train = dict.fromkeys("pqr", split())
    found = score(fit_probes(train), {"p": gone, "q": whole, "r": moved})
    assert (found.forget, found.preserve, found.selectivity) == (1.0, 0.5, 0.5)
    # Half of the images that are to stay go from one corner to another.
    assert found.drift == pytest.approx(2**0.5 / 2, rel=0.05)
