import numpy as np
import pytest

from jax_unlearn.evaluate.zero_shot import by_class, near_names, shares
from jax_unlearn.features.similarity import Named, classify

NAMES = Named(
    np.array([[1.0, 0, 0], [0, 2, 0], [0, 1.9, 0.4]], np.float32), np.array(["a", "b", "c"])
)


def test_the_nearest_in_cosine_whatever_the_lengths():
    images = np.array([[9, 1, 0], [0, 0.1, 0], [0, 5, 2]], np.float32)
    assert classify(images, NAMES).tolist() == ["a", "b", "c"]


def test_neighbours_are_the_kept_names_nearest_to_a_forgotten_one():
    assert near_names(NAMES, ["b"], 1) == ["c"]
    assert near_names(NAMES, ["a", "b"], 5) == ["c"]


def test_groups():
    images = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0.3]], np.float32)
    shown = Named(images, np.array(["a", "b", "b", "c"]))
    assert shares(shown, NAMES, ["b"], ["c"]) == {"forget": 0.5, "others": 1.0, "neighbours": 1.0}
    assert by_class(shown, NAMES, ["b"]) == {"b": 0.5}
    assert shares(shown, NAMES, ["a"], ["nobody"])["neighbours"] is None


def test_a_text_that_went_to_zero_is_nobodys():
    gone = Named(NAMES.embeddings * np.array([[1], [0], [1]], np.float32), NAMES.labels)
    assert classify(np.array([[0, 1, 0]], np.float32), gone).tolist() == ["c"]
    with pytest.raises(KeyError):
        shares(gone, gone, ["b"], [])["nothing"]
