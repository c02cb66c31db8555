"""From features and settings to the problem: which seed, which step, rows and projectors."""

import numpy as np
import pytest

from jax_unlearn.objective.problem import (
    ObjectiveSettings,
    blank_targets,
    problems,
    similar_images,
    targets_of,
)
from jax_unlearn.objective.projectors import projectors_of
from tests import made
from tests.made import DEEPSTACK, MERGER, TEXT, VISUAL

LINEARS = [made.identity(name, 5) for name in (MERGER, DEEPSTACK)]
FORGET, PRESERVE = 4, 12


def mergers(granularity="images", tokens=1):
    """Images of one token, or of very different numbers of tokens, through two Mergers."""
    random = np.random.default_rng(0)

    def side(count, forget):
        sizes = [1 + tokens * i for i in range(count)] if tokens > 1 else [1] * count
        # A small image is another than a large one.
        taps = {
            one.name: [random.normal(size=(n, 5)) + 10 / n + forget for n in sizes]
            for one in LINEARS
        }
        labels = ["a" if forget else "b"] * count
        return taps, made.side(taps, labels, LINEARS, forget, granularity)

    rows, train = zip(side(FORGET, True), side(PRESERVE, False), strict=True)
    test = side(2, True)[1], side(2, False)[1]
    return rows, made.extracted(LINEARS, train, test)


def constants(extracted, seed=0, **settings):
    """Where the targets of each Merger send an image, but for its own outputs."""
    found = targets_of(extracted, ObjectiveSettings(**settings), seed)
    return {one.name: t.constant if t.scaled is None else t.scaled for one, t in found}


@pytest.mark.parametrize("target", ["random", "matched"])
def test_what_is_drawn_is_drawn_with_the_seed(target):
    """Kills: the seed ignored by drawn targets (`targets_of`, `problems`)."""
    _, extracted = mergers()
    ours, again, other = (constants(extracted, seed, target=target) for seed in (0, 0, 1))
    assert ours.keys() == {"merger", "deepstack_merger_list.0"}
    for name, constant in ours.items():
        np.testing.assert_array_equal(constant, again[name])
        # No image goes where it went.
        assert np.linalg.norm(constant - other[name], axis=1).min() > 0.1
    # Nor do two Mergers share what was drawn.
    assert np.abs(np.subtract(*ours.values())).max() > 0.1
    settings = ObjectiveSettings(target=target)
    fits = [problems(extracted, settings, seed, held_out=False)[0][MERGER] for seed in (0, 1)]
    assert np.abs(np.asarray(fits[0].residual) - np.asarray(fits[1].residual)).max() > 0.1


def test_the_noise_about_an_empty_name_is_drawn_with_the_seed():
    """Kills: the seed ignored by the drawn target of names (`blank_targets`)."""
    linears = [made.identity(TEXT, 5)]

    def side(places, labels, forget):
        return made.side({TEXT: [np.eye(5)[i][None] for i in places]}, labels, linears, forget)

    groups = side([0], ["cat"], True), side([1, 2], ["dog", "cow"], False)
    extracted = made.extracted(linears, groups, groups, judged_linears=(made.identity(VISUAL, 5),))
    # What says nothing is a cat: it is moved until it is none.
    extracted.empty[TEXT] = np.float32([1, 0, 0, 0, 0])
    ours, again, other = (blank_targets(extracted, seed)[TEXT] for seed in (0, 0, 1))
    np.testing.assert_array_equal(ours, again)
    assert np.linalg.norm(ours - other) > 0.1


def test_how_far_near_goes_is_as_set():
    """Kills: `near_step` not passed on to `neutral_target`."""
    _, extracted = mergers()
    one, three, usual = (
        constants(extracted, target="near", **step)
        for step in ({"near_step": 1.0}, {"near_step": 3.0}, {})
    )
    for name, constant in one.items():
        assert np.linalg.norm(constant) > 0.1
        np.testing.assert_allclose(three[name], 3 * constant, rtol=1e-6)
        np.testing.assert_allclose(usual[name], 1.5 * constant, rtol=1e-6)


def test_likeness_is_over_all_projectors():
    """Kills: `similar_images` over the first projector only.

    The first one tells the three classes apart, the second within each the left from the right;
    both together say which four of twenty-four images an image is most like.
    """
    random = np.random.default_rng(0)
    kinds, halves = np.repeat(np.arange(3), 9), np.tile(np.repeat([0, 1], [5, 4]), 3)
    taps = {
        MERGER: np.eye(5)[kinds] + random.normal(size=(27, 5)) / 100,
        DEEPSTACK: np.eye(5)[3 + halves] + random.normal(size=(27, 5)) / 100,
    }
    # One image of each class, of its left half.
    is_forget = np.arange(27) % 9 == 0

    def side(mask):
        rows = {name: [x[None] for x in of_tap[mask]] for name, of_tap in taps.items()}
        return made.side(rows, [f"{kind}" for kind in kinds[mask]])

    sides = made.extracted(LINEARS, (side(is_forget), side(~is_forget)), (side(is_forget),) * 2)
    similar = similar_images(projectors_of(LINEARS), sides.train)
    assert similar.shape == (3, 10)
    for kind, nearest in enumerate(similar):
        assert set(kinds[~is_forget][nearest[:4]]) == {kind}
        assert set(halves[~is_forget][nearest[:4]]) == {0}


@pytest.mark.parametrize("granularity", ["tokens", "images"])
def test_a_mean_over_rows_is_not_one_of_images_means(granularity):
    """Kills: the mean of image means in place of the mean of all rows (`targets_of`).

    With images of several sizes the two are not the same.
    """
    rows, extracted = mergers(granularity, tokens=7)
    for target in ("mean", "shift"):
        found = constants(extracted, target=target)
        for one in LINEARS:
            of_side = [
                [x if granularity == "tokens" else x.mean(axis=0)[None] for x in side[one.name]]
                for side in rows
            ]
            forget, preserve = (np.concatenate(side).mean(axis=0) for side in of_side)
            expected = preserve if target == "mean" else preserve - forget
            for constant in found[one.projector]:
                np.testing.assert_allclose(constant, expected, rtol=1e-5)
