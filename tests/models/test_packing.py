import warnings
from itertools import pairwise

import numpy as np
import pytest

from jax_unlearn.models.attention import TILE
from jax_unlearn.models.qwen3_vision.packing import (
    LADDER,
    batch_shape,
    first_fit,
    frame_coordinates,
    frame_sizes,
    ladder_length,
    pack,
    position_taps,
)
from tests import tiny


def packed(grid, **options):
    pixels = tiny.images(grid)
    rows, length = batch_shape(frame_sizes(grid), 4, one_row=False)
    options = {"rows": rows, "length": length} | options
    return pixels, *pack(pixels, grid, merge=2, side=5, **options)


def test_first_fit_fills_the_first_row_with_room():
    places, rows = first_fit([6, 6, 3, 2, 4], length=10)
    assert places == [(0, 0), (1, 0), (0, 6), (1, 6), (2, 0)]
    assert rows == 3


@pytest.mark.parametrize("frame", [1, 256, 257, 384, 385, LADDER[-2] + 1, LADDER[-1]])
def test_a_frame_gets_the_smallest_length_that_holds_it(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ladder_length(frame, 4) == min(step for step in LADDER if step >= frame)


def test_the_ladder_wastes_less_than_a_fifth():
    waste = [1 - (before + 1) / after for before, after in pairwise(LADDER)]
    assert max(waste[2:]) < 0.2
    assert max(waste) < 0.34
    assert list(LADDER) == sorted(LADDER)


def test_a_frame_beyond_the_ladder_warns():
    with pytest.warns(UserWarning, match="compiles for this length alone"):
        assert ladder_length(LADDER[-1] + 1, 4) == 2 * LADDER[-1]


def test_each_frame_of_a_video_is_packed_alone():
    assert frame_sizes(tiny.GRID) == [24, 24, 24, 16]


def test_coordinates_keep_each_merge_block_together():
    blocks = frame_coordinates(4, 6, merge=2).reshape(-1, 4, 2)
    assert (blocks - blocks[:, :1]).tolist() == [[[0, 0], [0, 1], [1, 0], [1, 1]]] * 6
    assert blocks[:, 0].tolist() == [[0, 0], [0, 2], [0, 4], [2, 0], [2, 2], [2, 4]]


def test_position_weights_sum_to_one_and_corners_are_the_tables():
    coordinates = frame_coordinates(4, 6, merge=2)
    index, weight = position_taps(coordinates, 4, 6, side=5)
    np.testing.assert_allclose(weight.sum(axis=-1), 1, rtol=1e-6)
    corners = {(0, 0): 0, (0, 5): 4, (3, 0): 20, (3, 5): 24}
    for at, tap in corners.items():
        patch = coordinates.tolist().index(list(at))
        assert index[patch][weight[patch].argmax()] == tap
        assert weight[patch].max() == pytest.approx(1)


def test_every_patch_has_one_place_and_the_rest_is_padding():
    pixels, arrays, slots = packed(tiny.GRID)
    assert arrays.patches.shape == (1, 256, 96)
    np.testing.assert_array_equal(arrays.patches.reshape(-1, 96)[slots], pixels)
    segment = arrays.segment.reshape(-1)
    np.testing.assert_array_equal(segment[slots], np.repeat([1, 2, 3, 4], [24, 24, 24, 16]))
    assert (np.delete(segment, slots) == 0).all()
    assert len(set(slots)) == len(pixels)


def test_rows_are_a_power_of_two():
    assert batch_shape([200] * 5, 4, one_row=False) == (8, 256)
    assert batch_shape([100] * 5, 4, one_row=False) == (4, 256)


def test_one_row_holds_all_frames():
    assert batch_shape([200] * 5, 4, one_row=True) == (1, 1024)


def test_lengths_suit_the_pallas_kernels():
    assert all(length % TILE == 0 for length in LADDER)


def test_merged_patches_of_a_block_stay_neighbours():
    _, _, slots = packed(tiny.GRID)
    blocks = slots.reshape(-1, 4)
    assert (np.diff(blocks, axis=1) == 1).all()
    assert (blocks[:, 0] % 4 == 0).all()


def test_an_image_is_packed_alike_in_any_company():
    grid = tiny.GRID
    pixels, arrays, slots = packed(grid)
    sizes = grid.prod(axis=1)
    parts = np.split(np.arange(len(pixels)), np.cumsum(sizes)[:-1])
    turned = np.concatenate(parts[::-1])
    other, other_slots = pack(pixels[turned], grid[::-1], merge=2, side=5, rows=2, length=64)
    back = other_slots[np.argsort(turned)]
    for name in ("patches", "coordinates", "table_index", "table_weight"):
        first, second = getattr(arrays, name), getattr(other, name)
        width = first.shape[-1]
        np.testing.assert_array_equal(
            first.reshape(-1, width)[slots], second.reshape(-1, width)[back]
        )


@pytest.mark.parametrize(
    ("grid", "rows", "options", "message"),
    [
        ([[1, 4, 6]], 23, {}, "counts 24 patches, pixel_values 23"),
        ([[1, 3, 4]], 12, {}, "multiples of 2"),
        ([[1, 4, 6]], 24, {"length": 16}, "do not fit"),
        ([[3, 4, 6]], 72, {"length": 24, "rows": 2}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_an_error(grid, rows, options, message):
    pixels = np.zeros((rows, 96), np.float32)
    options = {"rows": 1, "length": 256} | options
    with pytest.raises(ValueError, match=message):
        pack(pixels, np.array(grid), merge=2, side=5, **options)
