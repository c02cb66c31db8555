"""Statistics while images stream: which rows, which images, and which are to choose by."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_unlearn.features import streaming
from jax_unlearn.features.samples import TapRows
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.features.token_owners import TokenOwners
from jax_unlearn.runtime.mesh import make_mesh
from tests.running import QUIET, source

TAP = "deepstack_merger_list.1.linear_fc2"


@pytest.fixture(scope="module")
def tokens(folder):
    """Every token's row at one tap, of the images to forget and to keep."""
    one = source(folder)
    extract = one.extractor.extract
    files = one.dataset.forget, one.dataset.preserve
    return [extract(side, one.reader, "", QUIET, [TAP]).taps[TAP] for side in files]


def expected(tap: TapRows, granularity: str):
    x = tap.x if granularity == "tokens" else tap.image_means().x
    return x.astype(np.float64)


@pytest.mark.parametrize("granularity", ["tokens", "images"])
@pytest.mark.parametrize("block", [1, 4096])
def test_a_run_gathers_what_all_its_rows_have(folder, tokens, granularity, block, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", block)
    sides = source(folder, granularity=granularity).extract().train
    for features, tap in zip((sides.forget, sides.preserve), tokens, strict=True):
        (found,) = features.statistics[TAP]
        x = expected(tap, granularity)
        assert found.count == len(x)
        np.testing.assert_allclose(found.total, x.sum(axis=0), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.full_gram(), x.T @ x, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(features.mean(TAP), x.mean(axis=0), rtol=1e-4, atol=1e-5)
        # Of the rows nothing stays but a mean an image.
        assert len(features.taps[TAP].x) == len(features.files)


def test_rows_are_kept_by_the_place_of_their_image(folder, tokens):
    """A broken file leaves no gap: the third image is the second then."""
    one = source(folder, granularity="tokens")
    broken = one.dataset.forget[1]
    data = broken.path.read_bytes()
    broken.path.write_bytes(b"broken")
    try:
        features = one.extract().train.forget
    finally:
        broken.path.write_bytes(data)
    (found,) = features.statistics[TAP]
    assert len(features.files) == len(one.dataset.forget) - 1
    assert sorted(set(found.rows.image)) == list(range(len(features.files)))
    two_rows_per_image = found.rows if found.gram is not None else found.rows.two_rows_per_image()
    third = two_rows_per_image.x[(two_rows_per_image.image == 1) & (two_rows_per_image.ones > 0)][0]
    of_third = tokens[0].x[tokens[0].image == 2]
    np.testing.assert_allclose(third, of_third.sum(axis=0) / len(of_third) ** 0.5, rtol=1e-4)


def test_images_to_choose_by_are_a_fifth_of_each_class_and_apart(folder):
    rows = {"granularity": "tokens"}
    whole = source(folder, **rows).extract().train.preserve
    split = source(folder, **rows, select="held_out").extract().train.preserve
    (every,), (fit, choose) = whole.statistics[TAP], split.statistics[TAP]
    assert (fit.count + choose.count, fit.count > choose.count > 0) == (every.count, True)
    np.testing.assert_allclose(fit.total + choose.total, every.total, rtol=1e-6)
    labels = split.labels[split.choosing]
    assert {name: int((labels == name).sum()) for name in set(labels)} == {
        name: round(int((split.labels == name).sum()) / 5) for name in set(split.labels)
    }


def test_means_of_some_images_are_kept_and_the_statistics_are_of_all(folder):
    few, every = (source(folder, granularity="tokens", keep_means=n).extract() for n in (3, None))
    some, whole = few.train, every.train
    assert len(some.preserve.files) == len(some.preserve.taps[TAP].x) == 3
    assert set(some.preserve.files) < set(whole.preserve.files)
    assert len(few.test.preserve.files) == 3
    assert some.forget.files == whole.forget.files
    (one,), (other,) = (side.preserve.statistics[TAP] for side in (some, whole))
    np.testing.assert_array_equal(one.full_gram(), other.full_gram())
    assert few.counts == every.counts


@pytest.mark.parametrize("granularity", ["tokens", "images"])
@pytest.mark.parametrize("select", ["best", "held_out"])
def test_devices_gather_what_the_host_gathers(folder, granularity, select, monkeypatch):
    """As on an accelerator: means are taken where the tokens are, and Gram matrices of some."""
    options = {"select": select, "granularity": granularity}
    options |= {"max_pixels": 512, "batch_patches": 512}
    host, device = (source(folder, **options, sum_on=where) for where in ("host", "device"))
    fetched = []
    pieces = TokenOwners.images
    monkeypatch.setattr(
        TokenOwners, "images", lambda *args: (fetched.append(args[2]), pieces(*args))[1]
    )
    theirs, ours = (one.extract().train for one in (host, device))
    # Of the rows to keep the host gets means only, of those to forget only where those will do.
    assert any(len(means) for means in fetched)
    for side, other in ((ours.forget, theirs.forget), (ours.preserve, theirs.preserve)):
        assert side.files == other.files
        np.testing.assert_allclose(side.taps[TAP].x, other.taps[TAP].x, rtol=1e-5, atol=1e-5)
        for part, same in zip(side.statistics[TAP], other.statistics[TAP], strict=True):
            assert part.count == same.count
            for one, two in ((part.total, same.total), (part.full_gram(), same.full_gram())):
                assert np.linalg.norm(one - two) <= 1e-5 * np.linalg.norm(two)


def test_sums_on_devices_go_on_from_a_snapshot(folder):
    one = source(folder)
    sums, again = (
        SideStatistics(one.linears, False, "tokens", one.dataset.preserve, mesh=make_mesh("data=1"))
        for _ in range(2)
    )
    shape = one.linears[0].shape[1]
    random = np.random.default_rng(0)
    steps = [
        {name: jnp.asarray(random.normal(size=(8, shape)), jnp.float32) for name in sums.taps}
        for _ in range(4)
    ]
    owner = np.array([0, 0, 1, 1, 2, -1, -1, 2])
    for number, taps in enumerate(steps):
        sums.add_step(taps, owner)
        if number == 1:
            again.restore(sums.arrays())
        elif number > 1:
            again.add_step(taps, owner)
    for name, groups in sums.taps.items():
        (ours,), (theirs,) = again.taps[name], groups
        assert ours.finish().count == 24
        np.testing.assert_array_equal(ours.finish().full_gram(), theirs.finish().full_gram())
