"""Images of any size into few shapes with little padding, none lost, none twice."""

import numpy as np
import pytest

from jax_unlearn.data.batches import MOST_SHAPES, BatchPlanner, Item


def item(index, h, w):
    return Item(index, int(h * w))


def mixed(count, seed=0, side=33):
    random = np.random.default_rng(seed)
    return [item(i, *(2 * random.integers(2, side, size=2))) for i in range(count)]


def padding(made):
    return 1 - sum(one.patches for one in made) / sum(one.rows * one.length for one in made)


def test_every_image_is_in_one_batch_that_holds_it():
    items = [*mixed(300), item(300, 100, 100), item(301, 4, 4)]
    planner = BatchPlanner(8192, 4, spare=100)
    made = list(planner.batches(items))
    assert sorted(one.index for batch in made for one in batch.items) == list(range(302))
    for batch in made:
        assert len(batch.items) <= batch.rows
        assert all(one.patches <= batch.length for one in batch.items)
        assert batch.rows == 1 or batch.rows * batch.length <= 8192
    # An image larger than a batch has a row of its own.
    assert [batch.rows for batch in made if batch.length > 8192] == [1]


@pytest.mark.parametrize(("spare", "shapes", "most"), [(0, 12, 0.15), (10**7, 1, 0.8)])
def test_padding_is_little_unless_compiling_costs_more(spare, shapes, most):
    planner = BatchPlanner(8192, 4, spare)
    made = list(planner.batches(mixed(5000)))
    assert {(batch.rows, batch.length) for batch in made} == planner.known
    assert len(planner.known) <= shapes
    assert padding(made) < most


def test_all_passes_of_a_run_share_their_shapes():
    planner = BatchPlanner(8192, 4, spare=0)
    for seed, (count, side) in enumerate(
        [(1, 33), (2000, 33), (50, 33), (700, 20), (3, 9), (90, 33)]
    ):
        items = mixed(count, seed, side)
        assert sum(len(batch.items) for batch in planner.batches(items)) == count
    assert len(planner.known) <= MOST_SHAPES
    # The last images of a pass take a shape of more rows where that costs little.
    planner = BatchPlanner(8192, 4, spare=1000)
    rows = [
        [b.rows for b in planner.batches([item(i, 8, 8) for i in range(n)])] for n in (200, 120)
    ]
    assert rows == [[128, 72], [128]]


def patches_of(made):
    return sum(one.rows * one.length for one in made)


@pytest.mark.parametrize("spare", [0, 12, 1000])
def test_a_large_pass_after_a_small_one_has_full_batches_and_a_small_one_after_it_few(spare):
    def images(count, seed):
        patches = np.random.default_rng(seed).integers(16, 64, count)
        return [Item(i, int(4 * n)) for i, n in enumerate(patches)]

    planner, alone = BatchPlanner(8192, 4, spare), BatchPlanner(8192, 4, spare)
    first, large, last = (list(planner.batches(images(n, n))) for n in (20, 4000, 21))
    assert len(first) <= 10
    assert patches_of(large) <= 1.05 * patches_of(alone.batches(images(4000, 4000)))
    # Rows of a batch that are left hold images of other lengths.
    assert sum(len(one.items) for one in last) == 21
    assert len(last) <= 3
    assert len(planner.known) <= MOST_SHAPES + 10


def test_equal_images_of_a_power_of_two_leave_no_padding():
    made = list(BatchPlanner(8192, 4, 0).batches([item(i, 32, 32) for i in range(20)]))
    assert [(batch.rows, batch.length) for batch in made] == [(8, 1024), (8, 1024), (4, 1024)]
