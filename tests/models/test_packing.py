import warnings
from itertools import pairwise

import numpy as np
import pytest

from jax_unlearn.models.qwen3_vision.packing import (
    LADDER,
    frame_coordinates,
    frame_sizes,
    pack,
    position_taps,
    row_count,
    row_length,
    shared_lengths,
)
from tests import tiny


def packed(grid, **options):
    pixels = tiny.images(grid)
    sizes = frame_sizes(grid)
    options = {"rows": len(sizes) + 1, "length": row_length(max(sizes), 4)} | options
    return pixels, *pack(pixels, grid, merge=2, side=5, **options)


@pytest.mark.parametrize("frame", [1, 17, 64, 65, 256, 257, 385, LADDER[-2] + 1, LADDER[-1]])
def test_a_frame_gets_the_smallest_length_that_holds_it(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert row_length(frame, 4) == min(step for step in LADDER if step >= frame)


def test_the_ladder_wastes_at_most_an_eighth():
    waste = [1 - (before + 1) / after for before, after in pairwise(LADDER) if before >= 64]
    assert max(waste) < 0.125
    assert list(LADDER) == sorted(LADDER)
    assert [row_count(n) for n in (1, 7, 16, 17, 31, 33, 100)] == [1, 7, 16, 18, 32, 36, 104]
    assert max(1 - n / row_count(n) for n in range(1, 2000)) < 0.125


def test_a_frame_beyond_the_ladder_warns():
    with pytest.warns(UserWarning, match="compiles for this length alone"):
        assert row_length(LADDER[-1] + 1, 4) == 2 * LADDER[-1]
    assert row_length(64, 9) == 72


def test_lengths_are_shared_where_padding_is_cheap():
    lengths = [64] * 10 + [72] * 2 + [128]
    assert shared_lengths(lengths, (), 0) == {64: 64, 72: 72, 128: 128}
    # Ten rows padded by 8 are cheap, and twelve by 56 are not.
    assert shared_lengths(lengths, (), 100) == {64: 72, 72: 72, 128: 128}
    assert shared_lengths(lengths, (), 1000) == {64: 128, 72: 128, 128: 128}
    # A known length costs nothing, and need not be left.
    assert shared_lengths(lengths, {64, 80}, 100) == {64: 64, 72: 80, 128: 128}
    assert shared_lengths(lengths, (), 0, most=2) == {64: 72, 72: 72, 128: 128}
    assert shared_lengths(lengths, {64, 256}, 0, most=2) == {64: 64, 72: 256, 128: 256}
    # None is longer than the largest.
    assert shared_lengths(lengths, {64}, 0, most=1)[128] == 128


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
    assert arrays.patches.shape == (5, 32, 96)
    np.testing.assert_array_equal(arrays.patches.reshape(-1, 96)[slots], pixels)
    assert arrays.filled.tolist() == [24, 24, 24, 16, 0]
    used = np.arange(32) < arrays.filled[:, None]
    np.testing.assert_array_equal(np.flatnonzero(used), np.sort(slots))
    assert len(set(slots)) == len(pixels)


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
    other, other_slots = pack(pixels[turned], grid[::-1], merge=2, side=5, rows=4, length=32)
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
