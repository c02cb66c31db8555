"""What each neutral target is."""

import jax
import numpy as np
import pytest

from jax_unlearn.objective.targets import TARGETS, Outputs, neutral_target

IMAGE = np.array([0, 0, 0, 1, 1])
OTHER = np.repeat(np.arange(12), 2)


def means(x, image):
    return np.stack([x[image == i].mean(axis=0) for i in range(image.max() + 1)])


@pytest.fixture
def rows():
    """Outputs of the rows to forget and to preserve, float32."""
    random = np.random.default_rng(0)
    forget, preserve = (random.normal(size=(n, 6)).astype(np.float32) for n in (5, 24))
    return forget + 3, preserve


@pytest.fixture
def outputs(rows):
    forget, preserve = rows
    blank = np.random.default_rng(1).normal(size=6).astype(np.float32)
    similar = np.array([[0, 1], [2, 3]])
    of_images = means(forget, IMAGE), means(preserve, OTHER)
    return Outputs(*of_images, forget.mean(axis=0), preserve.mean(axis=0), blank, similar)


@pytest.fixture
def target(rows, outputs):
    def of(kind, seed=0, **options):
        made = neutral_target(kind, outputs, jax.random.key(seed), **options)
        return made.rows(rows[0], IMAGE)

    return of


def test_random_is_one_unit_vector_an_image_from_the_seed(target):
    made = target("random")
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)
    assert np.array_equal(made[0], made[2])
    assert not np.allclose(made[0], made[3])
    assert np.array_equal(made, target("random"))
    assert not np.allclose(made, target("random", seed=1))


def test_matched_has_the_same_directions_and_each_rows_own_norm(target, rows):
    forget, _ = rows
    norm = np.linalg.norm(forget, axis=1, keepdims=True)
    np.testing.assert_allclose(target("matched"), norm * target("random"), rtol=1e-5)


def test_mean_and_blank_are_one_vector(target, rows, outputs):
    _, preserve = rows
    for kind, expected in (("mean", preserve.mean(axis=0)), ("blank", outputs.blank)):
        made = target(kind)
        np.testing.assert_allclose(made, np.tile(expected, (5, 1)), rtol=1e-5)


def test_shift_moves_the_mean_and_keeps_every_difference(target, rows):
    forget, preserve = rows
    made = target("shift")
    np.testing.assert_allclose(made.mean(axis=0), preserve.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(made[1] - made[0], forget[1] - forget[0], atol=1e-5)


@pytest.mark.parametrize("near_step", [1.0, 1.5])
def test_near_moves_all_rows_by_the_mean_step_to_the_similar_images(near_step, target, rows):
    forget, preserve = rows
    made = target("near", near_step=near_step)
    others = preserve.reshape(12, 2, 6).mean(axis=1)
    own = np.stack([forget[image == IMAGE].mean(axis=0) for image in (0, 1)])
    goal = np.stack([others[:2].mean(axis=0), others[2:4].mean(axis=0)])
    step = near_step * (goal - own).mean(axis=0)
    np.testing.assert_allclose(made - forget, np.tile(step, (5, 1)), atol=1e-5)


def test_twin_moves_each_image_to_the_mean_of_its_ten_nearest_after_the_shift(target, rows):
    forget, preserve = rows
    made = target("twin")
    others = preserve.reshape(12, 2, 6).mean(axis=1)
    move = preserve.mean(axis=0) - forget.mean(axis=0)
    for image in (0, 1):
        own = forget[image == IMAGE].mean(axis=0)
        distance = np.linalg.norm(others - (own + move), axis=1)
        expected = others[np.argsort(distance)[:10]].mean(axis=0)
        np.testing.assert_allclose(made[image == IMAGE].mean(axis=0), expected, atol=1e-5)
    np.testing.assert_allclose(made[1] - made[0], forget[1] - forget[0], atol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_has_the_shape_of_the_rows(kind, target, rows):
    made = target(kind)
    assert made.shape == rows[0].shape
    assert made.dtype == np.float32
