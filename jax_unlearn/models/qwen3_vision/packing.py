"""Pack images of any size into arrays of a few fixed shapes (on the host, in numpy).

Attention stays within a frame, so frames are what is packed: a batch is `rows` rows of `length`
patches, each row holds one or more whole frames, and every frame is a segment of its own.
"""

import bisect
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

# A few static lengths keep the number of compilations small; four steps between powers of two keep
# the padding of a row below a fifth, and at a tenth on average. All are multiples of 128, the tile
# of the Pallas attention kernels.
LADDER = (256, 384, *(quarters * 2**power for power in range(7, 16) for quarters in range(4, 8)))
# Frames of up to this many patches are packed into short rows, where dense attention is cheap.
SMALL_FRAME = 128
MIN_LENGTH = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedPatches:
    """Input arrays of the tower's jitted forward. Segment 0 is padding; frames count from 1."""

    patches: Float[Array | np.ndarray, "rows length patch"]
    coordinates: Int[Array | np.ndarray, "rows length 2"]
    table_index: Int[Array | np.ndarray, "rows length 4"]
    table_weight: Float[Array | np.ndarray, "rows length 4"]
    segment: Int[Array | np.ndarray, "rows length"]


def ladder_length(patches: int, block: int) -> int:
    """The smallest length of LADDER that holds `patches` patches, in whole merge blocks.

    Rounding up to whole blocks of `block` patches only changes it for a merge of 3 × 3. Beyond the
    ladder the length is the next multiple of its last step, with a warning, since each such length
    compiles again.
    """
    step = bisect.bisect_left(LADDER, patches)
    if step < len(LADDER):
        return -(-LADDER[step] // block) * block
    warnings.warn(
        f"{patches} patches at once are more than the longest row, {LADDER[-1]}: the program "
        "compiles for this length alone; give fewer images per call, or lower --max-pixels",
        stacklevel=2,
    )
    whole = -(-patches // LADDER[-1]) * LADDER[-1]
    return -(-whole // block) * block


def short_length(patches: int, block: int) -> int:
    """Length of a row of small frames: a power of two, in whole merge blocks."""
    return -(-max(MIN_LENGTH, 1 << (patches - 1).bit_length()) // block) * block


def frame_sizes(grid_thw: Int[np.ndarray, "n 3"]) -> list[int]:
    """Number of patches of every frame, in order: h·w for each of the t frames of a grid."""
    return [int(h * w) for t, h, w in grid_thw for _ in range(t)]


def first_fit(sizes: list[int], length: int) -> tuple[list[tuple[int, int]], int]:
    """First-fit packing into rows of `length`: (row, offset) of each frame, and the row count."""
    used: list[int] = []
    return place(sizes, length, used), len(used)


def place(sizes: list[int], length: int, used: list[int]) -> list[tuple[int, int]]:
    """First-fit packing into rows of which `used` patches are taken; updates `used` in place."""
    places = []
    for size in sizes:
        row = next((i for i, u in enumerate(used) if u + size <= length), len(used))
        if row == len(used):
            used.append(0)
        places.append((row, used[row]))
        used[row] += size
    return places


def batch_shape(sizes: list[int], block: int, one_row: bool) -> tuple[int, int]:
    """(rows, length) of a batch that holds all frames: one row, or rows for the largest frame.

    Args:
        sizes: number of patches of each frame.
        block: number of patches of a merge block.
        one_row: put all frames into one row, unless all are small (SMALL_FRAME); otherwise the
            number of rows is a power of two.
    """
    if one_row and max(sizes) > SMALL_FRAME:
        return 1, ladder_length(sum(sizes), block)
    length = short_length(max(sizes), block) if one_row else ladder_length(max(sizes), block)
    return 1 << (first_fit(sizes, length)[1] - 1).bit_length(), length


def frame_coordinates(h: int, w: int, merge: int) -> Int[np.ndarray, "hw 2"]:
    """(row, column) of a frame's patches, ordered so that each merge block is contiguous."""
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    blocks = grid.reshape(h // merge, merge, w // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(h * w, 2).astype(np.int32)


def _axis_taps(
    index: Int[np.ndarray, " n"], size: int, side: int
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """The two nearest table entries and their weights (bilinear, align_corners) on one axis."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(source)
    fraction = source - low
    taps = np.stack([low, low + 1], axis=-1).clip(0, side - 1).astype(np.int32)
    return taps, np.stack([1 - fraction, fraction], axis=-1)


def position_taps(
    coordinates: Int[np.ndarray, "n 2"], h: int, w: int, side: int
) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """Indices into the flat [side²] position table and weights, for patches of an h × w frame."""
    rows, row_weights = _axis_taps(coordinates[:, 0], h, side)
    cols, col_weights = _axis_taps(coordinates[:, 1], w, side)
    index = (rows[:, :, None] * side + cols[:, None, :]).reshape(-1, 4)
    weight = (row_weights[:, :, None] * col_weights[:, None, :]).reshape(-1, 4)
    return index.astype(np.int32), weight.astype(np.float32)


def pack(
    pixel_values: Shaped[np.ndarray | Array, "patches patch"],
    grid_thw: Int[np.ndarray, "n 3"],
    *,
    merge: int,
    side: int,
    rows: int,
    length: int,
) -> tuple[PackedPatches, Int[np.ndarray, " patches"]]:
    """Pack the patches of several images into arrays of static shapes.

    Args:
        pixel_values: the image processor's rows, image after image, in numpy or traced by
            JAX.
        grid_thw: number of frames, and height and width in patches, of each image.
        merge: side of the Merger's block; height and width are multiples of it.
        side: side of the learned position table.
        rows: number of rows of the batch.
        length: patches per row (see `batch_shape`).

    Returns:
        The packed arrays, and the index of each input patch in the flat [rows · length] order.

    Raises:
        ValueError: the grid does not match the patches, or does not fit rows × length.
    """
    sizes = frame_sizes(grid_thw)
    if sum(sizes) != len(pixel_values):
        raise ValueError(f"grid_thw counts {sum(sizes)} patches, pixel_values {len(pixel_values)}")
    if (grid_thw[:, 1:] % merge).any():
        raise ValueError(f"heights and widths in patches must be multiples of {merge}")
    places, needed = first_fit(sizes, length)
    if needed > rows or max(sizes) > length:
        raise ValueError(f"{needed} rows of {max(sizes)} patches do not fit {rows} × {length}")

    starts = np.array([row * length + offset for row, offset in places])
    slots = np.concatenate([start + np.arange(n) for start, n in zip(starts, sizes, strict=True)])
    frames = [(int(h), int(w)) for t, h, w in grid_thw for _ in range(t)]
    layout = {hw: frame_coordinates(*hw, merge) for hw in set(frames)}
    taps = {hw: position_taps(layout[hw], *hw, side) for hw in layout}

    def scatter(values: np.ndarray) -> np.ndarray:
        out = np.zeros((rows * length, *values.shape[1:]), values.dtype)
        out[slots] = values
        return out.reshape(rows, length, *values.shape[1:])

    patches: Any
    if isinstance(pixel_values, np.ndarray):
        patches = scatter(pixel_values)
    else:
        empty = jnp.zeros((rows * length, pixel_values.shape[1]), pixel_values.dtype)
        patches = empty.at[slots].set(pixel_values).reshape(rows, length, -1)
    packed = PackedPatches(
        patches=patches,
        coordinates=scatter(np.concatenate([layout[hw] for hw in frames])),
        table_index=scatter(np.concatenate([taps[hw][0] for hw in frames])),
        table_weight=scatter(np.concatenate([taps[hw][1] for hw in frames])),
        segment=scatter(np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)),
    )
    return packed, slots
