"""Tokens at fixed places of an image: where they are, and that a pass keeps these."""

import numpy as np
import pytest

from jax_unlearn.data.images import ImageReader
from jax_unlearn.features.samples import TapRows
from jax_unlearn.features.token_sample import (
    TOKENS,
    by_image,
    deviations,
    having_tokens,
    sample_places,
)
from tests.running import QUIET, source


def test_every_token_of_a_small_image_is_taken():
    assert sample_places(4, 4).tolist() == list(range(16))
    # Where an image has fewer, some are taken more than once.
    assert sample_places(1, 2).tolist() == [0, 0, 1, 1] * 4


def test_places_are_the_centres_of_the_cells():
    places = sample_places(8, 12)
    assert places[:4].tolist() == [12 + 1, 12 + 4, 12 + 7, 12 + 10]
    assert places[-1] == 7 * 12 + 10


def test_a_pass_keeps_the_tokens_at_these_places(folder):
    it = source(folder)
    files, reader = it.dataset.forget[:4], ImageReader(True)
    names = [linear.name for linear in it.linears]
    whole = it.extractor.extract(files, reader, "", QUIET, tokens=names)
    some = it.extractor.extract(files, reader, "", QUIET, sampled={files[1], files[3]})
    for name in names:
        tokens = by_image(some.tokens[name])
        assert having_tokens(some.tokens[name]).tolist() == [1, 3]
        for place, image in enumerate((1, 3)):
            own = whole.taps[name].x[whole.taps[name].image == image]
            side = int(np.sqrt(len(own)))
            assert side**2 == len(own)
            np.testing.assert_array_equal(tokens[place], own[sample_places(side, side)])
        # The others keep their means.
        np.testing.assert_array_equal(some.taps[name].x, whole.image_means().taps[name].x)


def test_chosen_samples_keep_their_tokens(folder):
    it = source(folder)
    files = it.dataset.forget[:4]
    some = it.extractor.extract(files, ImageReader(True), "", QUIET, sampled={files[1], files[3]})
    chosen = some.chosen(np.array([3, 0]))
    name = it.linears[0].name
    assert chosen.files == (files[3], files[0])
    assert having_tokens(chosen.tokens[name]).tolist() == [0]
    np.testing.assert_array_equal(by_image(chosen.tokens[name])[0], by_image(some.tokens[name])[1])


def test_deviations_are_from_the_mean_of_the_own_image():
    tokens = np.arange(2 * TOKENS * 3, dtype=np.float32).reshape(2, TOKENS, 3)
    rows = deviations(tokens, tokens.mean(axis=1))
    np.testing.assert_allclose(rows.reshape(tokens.shape).mean(axis=1), 0, atol=1e-4)
    assert by_image(TapRows(tokens.reshape(-1, 3), np.repeat([0, 1], TOKENS))).shape == tokens.shape


@pytest.mark.parametrize("steps", [1, 2])
def test_a_snapshot_brings_sampled_tokens_back(folder, steps):
    it = source(folder, batch_patches=256)
    files = it.dataset.forget
    from jax_unlearn.features.pass_state import PassState

    names, sampled = [one.name for one in it.linears], set(files[::2])
    state, again = (PassState(files, names, sampled=sampled) for _ in range(2))
    random = np.random.default_rng(0)
    for image in range(2 * steps):
        state.add(image, {n: random.normal(size=(16, 8)).astype(np.float32) for n in names}, (4, 4))
    again.restore(state.snapshot())
    ours, theirs = state.features(), again.features()
    for name in names:
        np.testing.assert_array_equal(ours.tokens[name].x, theirs.tokens[name].x)
        assert having_tokens(theirs.tokens[name]).tolist() == list(range(0, 2 * steps, 2))
