"""Readers of two classes, on embeddings whose right answer is known."""

import numpy as np
import pytest

from jax_unlearn.evaluate.reidentification import TwoClasses, few_shot, readable, reduced


def cloud(count, seed, step=0.0, dimensions=12):
    x = np.random.default_rng(seed).normal(size=(count, dimensions))
    x[:, 0] += step
    return x.astype(np.float32)


def test_classes_far_apart_are_told_apart_by_one_image():
    scores = few_shot(TwoClasses(cloud(60, 0, 40.0), cloud(60, 1)))
    assert scores.curve["1"] == [1.0, 1.0, 1.0]
    assert set(scores.curve) == {"1", "3", "10", "30"}
    for recalls in scores.refitted.values():
        assert recalls == {"balanced": 1.0, "forget": 1.0, "counterpart": 1.0}


def test_equal_classes_are_told_apart_by_chance():
    scores = few_shot(TwoClasses(cloud(400, 0), cloud(400, 1)), draws=3)
    # The best of four readers, on 400 images.
    for mean, least, most in scores.curve.values():
        assert least <= mean <= most
        assert abs(mean - 0.5) < 0.06


def test_more_labelled_images_find_a_small_step():
    curve = few_shot(TwoClasses(cloud(400, 0, 2.0), cloud(400, 1)), draws=3).curve
    assert curve["1"][0] + 0.1 < curve["100"][0]
    # Φ(1): the best that any reader of this step reaches.
    assert curve["100"][0] == pytest.approx(0.841, abs=0.04)


def test_readers_are_fitted_on_images_of_their_own_if_there_are_some():
    apart, same = (cloud(30, 2, 40.0), cloud(30, 3)), (cloud(20, 4), cloud(20, 5))
    assert few_shot(TwoClasses(*same, fit=apart)).curve["10"][0] < 0.75
    assert few_shot(TwoClasses(*apart, fit=apart)).curve["10"] == [1.0, 1.0, 1.0]


def test_both_recalls_are_reported():
    lazy = TwoClasses(cloud(40, 0, 40.0), np.concatenate([cloud(20, 1, 40.0), cloud(20, 2)]))
    recalls = few_shot(lazy).refitted["nearest_neighbour"]
    assert recalls["balanced"] == pytest.approx((recalls["forget"] + recalls["counterpart"]) / 2)
    assert recalls["counterpart"] < 0.9


def test_distances_do_not_change_in_the_space_of_the_images():
    wide = TwoClasses(cloud(5, 0, 1.0, 300), cloud(6, 1, 0.0, 300))
    x, sides = reduced(wide)
    assert x.shape == (11, 11)
    both = np.concatenate([wide.forget, wide.counterpart])
    first, second = ((rows[:, None] - rows) ** 2 for rows in (x, both.astype(np.float64)))
    np.testing.assert_allclose(first.sum(axis=-1), second.sum(axis=-1), atol=1e-9)
    assert [len(rows) for rows in sides.test] == [5, 6]


@pytest.mark.parametrize(
    ("images", "share"), [(40, 0.83), (100, 0.73), (250, 0.65), (500, 0.61), (1000, 0.58)]
)
def test_the_law_of_the_number_of_images(images, share):
    assert readable(images, images) == pytest.approx(share, abs=0.01)
