"""Images of any size into few shapes with little padding, none lost, none twice."""

import numpy as np
import pytest

from jax_unlearn.data.batches import Item, Pool
from jax_unlearn.models.qwen3_vision.packing import first_fit


def item(index, h, w):
    return Item(index, int(h * w))


def mixed(count, seed=0):
    random = np.random.default_rng(seed)
    return [item(i, *(2 * random.integers(2, 33, size=2))) for i in range(count)]


def batches(items, patches=8192, one_row=True):
    pool = Pool(patches, 4, one_row)
    return [batch for one in items for batch in pool.add(one)] + list(pool.flush())


@pytest.mark.parametrize("one_row", [True, False])
def test_every_image_is_in_one_batch_that_holds_it(one_row):
    items = [*mixed(300), item(300, 100, 100), item(301, 4, 4)]
    made = batches(items, one_row=one_row)
    seen = [one.index for batch in made for one in batch.items]
    assert sorted(seen) == list(range(302))
    for batch in made:
        sizes = [one.patches for one in batch.items]
        assert first_fit(sizes, batch.length)[1] <= batch.rows


@pytest.mark.parametrize(("one_row", "shapes", "padding"), [(True, 2, 0.01), (False, 4, 0.05)])
def test_few_shapes_and_little_padding(one_row, shapes, padding):
    made = batches(mixed(500), one_row=one_row)
    assert len({(batch.rows, batch.length) for batch in made}) <= shapes
    slots = sum(batch.rows * batch.length for batch in made)
    assert 1 - sum(batch.patches for batch in made) / slots < padding


def test_equal_images_of_a_power_of_two_leave_no_padding():
    for one_row in (True, False):
        made = batches([item(i, 32, 32) for i in range(20)], one_row=one_row)
        assert [batch.rows * batch.length for batch in made] == [8192, 8192, 4096]


def test_a_larger_one_has_a_shape_of_its_own_at_once():
    pool = Pool(1024, 4, one_row=True)
    assert list(pool.add(item(0, 4, 4))) == []
    (alone,) = pool.add(item(1, 40, 40))
    assert (alone.rows, alone.length) == (1, 1792)
    assert [one.index for one in alone.items] == [1]
    (left,) = pool.flush()
    assert [one.index for one in left.items] == [0]
