"""Rows of images: means, held-out rows, and which images are alike."""

import numpy as np
import pytest

from jax_unlearn.features.samples import SampleFeatures, TapRows, image_means
from jax_unlearn.features.similarity import most_similar
from tests import made


def test_image_means_average_each_images_rows():
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_allclose(image_means(x, np.array([0, 0, 1, 2, 2]))[[0, 2]], [[1, 2], [7, 8]])
    np.testing.assert_allclose(image_means(x, np.array([0, 0, 1, 1, 2]))[[0, 2]], [[1, 2], [8, 9]])


def test_only_the_last_linears_rows_become_means():
    tap = TapRows.of([np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)])
    assert tap.image.tolist() == [0, 0, 1]
    names = ("merger.linear_fc1", "merger.linear_fc2")
    means = SampleFeatures((), dict.fromkeys(names, tap)).image_means()
    assert means.taps[names[0]] is tap
    assert means.taps[names[1]].x.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert means.taps[names[1]].image.tolist() == [0, 1]


@pytest.mark.parametrize("granularity", ["tokens", "images"])
def test_the_mean_is_of_all_rows_of_the_loss(granularity):
    """Kills: the mean of image means in place of the mean of all rows (`SampleFeatures.mean`)."""
    linear = made.identity(made.MERGER, 4)
    rows = [np.full((n, 4), 1 / n, np.float32) for n in (1, 2, 50)]
    # 3 by 53 rows, or the mean of 1, 1/2 and 1/50.
    expected = 3 / 53 if granularity == "tokens" else (1 + 1 / 2 + 1 / 50) / 3
    features = made.side({linear.name: rows}, "aaa", [linear], True, granularity)
    np.testing.assert_allclose(features.mean(linear.name), np.full(4, expected), rtol=1e-6)
    # Where there are no statistics, the rows themselves are there.
    taps = rows if granularity == "tokens" else [x[:1] for x in rows]
    plain = SampleFeatures(features.files, {linear.name: TapRows.of(taps)})
    np.testing.assert_allclose(plain.mean(linear.name), np.full(4, expected), rtol=1e-6)


def test_similar_images_share_what_all_paths_say_whatever_their_common_mean():
    random = np.random.default_rng(0)
    kind = np.repeat(np.arange(4), 6)
    signal = np.eye(4)[kind]
    # The second path is a hundred times larger and knows nothing; the first has a large mean.
    paths = [
        np.concatenate([signal, np.full((24, 1), 50.0)], axis=1)
        + 0.01 * random.normal(size=(24, 5)),
        100 * (signal + random.normal(size=(24, 4))) + 1000,
    ]
    is_forget = np.zeros(24, bool)
    is_forget[[0, 6]] = True
    similar = most_similar(paths, is_forget, 3)
    assert similar.shape == (2, 3)
    assert (kind[~is_forget][similar[0]] == 0).mean() > 0.6
    assert (kind[~is_forget][similar[1]] == 1).mean() > 0.6
    assert most_similar(paths, is_forget, 100).shape == (2, 22)
