"""What each neutral target is."""

import jax
import numpy as np
import pytest

from jax_unlearn.targets import TARGETS, Outputs, neutral_target

IMAGE = np.array([0, 0, 0, 1, 1])
OTHER = np.repeat(np.arange(12), 2)


@pytest.fixture
def outputs():
    random = np.random.default_rng(0)
    forget, preserve = (random.normal(size=(n, 6)).astype(np.float32) for n in (5, 24))
    blank = random.normal(size=6).astype(np.float32)
    similar = np.array([[0, 1], [2, 3]])
    return Outputs(forget + 3, IMAGE, preserve, OTHER, blank, similar)


def target(kind, outputs, seed=0):
    return neutral_target(kind, outputs, jax.random.key(seed))


def test_random_is_one_unit_vector_an_image_from_the_seed(outputs):
    rows = target("random", outputs)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert np.array_equal(rows[0], rows[2])
    assert not np.allclose(rows[0], rows[3])
    assert np.array_equal(rows, target("random", outputs))
    assert not np.allclose(rows, target("random", outputs, seed=1))


def test_matched_has_the_same_directions_and_each_rows_own_norm(outputs):
    norm = np.linalg.norm(outputs.forget, axis=1, keepdims=True)
    np.testing.assert_allclose(
        target("matched", outputs), norm * target("random", outputs), rtol=1e-5
    )


def test_mean_and_blank_are_one_vector(outputs):
    for kind, expected in (("mean", outputs.preserve.mean(axis=0)), ("blank", outputs.blank)):
        rows = target(kind, outputs)
        np.testing.assert_allclose(rows, np.tile(expected, (5, 1)), rtol=1e-5)


def test_shift_moves_the_mean_and_keeps_every_difference(outputs):
    rows = target("shift", outputs)
    np.testing.assert_allclose(rows.mean(axis=0), outputs.preserve.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(rows[1] - rows[0], outputs.forget[1] - outputs.forget[0], atol=1e-5)


@pytest.mark.parametrize("near_step", [1.0, 1.5])
def test_near_moves_all_rows_by_the_mean_step_to_the_similar_images(outputs, near_step):
    rows = neutral_target("near", outputs, jax.random.key(0), near_step)
    others = outputs.preserve.reshape(12, 2, 6).mean(axis=1)
    own = np.stack([outputs.forget[image == IMAGE].mean(axis=0) for image in (0, 1)])
    goal = np.stack([others[:2].mean(axis=0), others[2:4].mean(axis=0)])
    step = near_step * (goal - own).mean(axis=0)
    np.testing.assert_allclose(rows - outputs.forget, np.tile(step, (5, 1)), atol=1e-5)


def test_twin_moves_each_image_to_the_mean_of_its_ten_nearest_after_the_shift(outputs):
    rows = target("twin", outputs)
    others = outputs.preserve.reshape(12, 2, 6).mean(axis=1)
    move = outputs.preserve.mean(axis=0) - outputs.forget.mean(axis=0)
    for image in (0, 1):
        own = outputs.forget[image == IMAGE].mean(axis=0)
        distance = np.linalg.norm(others - (own + move), axis=1)
        expected = others[np.argsort(distance)[:10]].mean(axis=0)
        np.testing.assert_allclose(rows[image == IMAGE].mean(axis=0), expected, atol=1e-5)
    np.testing.assert_allclose(rows[1] - rows[0], outputs.forget[1] - outputs.forget[0], atol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_has_the_shape_of_the_rows(kind, outputs):
    rows = target(kind, outputs)
    assert rows.shape == outputs.forget.shape
    assert rows.dtype == np.float32
