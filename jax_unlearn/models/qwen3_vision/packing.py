"""Pack images of any size into arrays of a few fixed shapes (on the host, in numpy).

Attention stays within a frame, so a row holds one frame. A batch is `rows` rows of `length`
patches, and frames of similar size share a batch.
"""

import bisect
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

# Eight steps between powers of two keep the padding of a row below an eighth. Small images have
# fewer lengths, because their rows cost little.
LADDER = (
    *(16, 32, 48),
    *(eighths * 2**power for power in range(3, 13) for eighths in range(8, 16)),
)
# Most lengths of rows in a run, as far as no row would be shorter than its frame.
MOST_LENGTHS = 10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedPatches:
    """Input arrays of the tower's jitted forward; `filled` is the size of each row's frame."""

    patches: Float[Array | np.ndarray, "rows length patch"]
    coordinates: Int[Array | np.ndarray, "rows length 2"]
    table_index: Int[Array | np.ndarray, "rows length 4"]
    table_weight: Float[Array | np.ndarray, "rows length 4"]
    filled: Int[Array | np.ndarray, " rows"]


def row_length(patches: int, block: int) -> int:
    """The smallest length of LADDER that holds a frame of `patches` patches, in whole merge blocks.

    Rounding up to whole blocks of `block` patches only changes it for a merge of 3 × 3. Beyond the
    ladder the length is the next multiple of its last step, with a warning, since each such length
    compiles again.
    """
    step = bisect.bisect_left(LADDER, patches)
    if step < len(LADDER):
        return -(-LADDER[step] // block) * block
    warnings.warn(
        f"an image of {patches} patches is larger than the longest row, {LADDER[-1]}: the program "
        "compiles for this length alone; lower --max-pixels",
        stacklevel=2,
    )
    whole = -(-patches // LADDER[-1]) * LADDER[-1]
    return -(-whole // block) * block


def shared_lengths(
    lengths: Iterable[int], known: Collection[int], spare: int, most: int = MOST_LENGTHS
) -> dict[int, int]:
    """The length that the rows of each length are padded to, so that few programs are compiled.

    Args:
        lengths: the length of each row by `row_length`.
        known: lengths of programs that are compiled anyway.
        spare: padding, in patches, that is cheaper than another program.
        most: number of lengths, with the known ones, beyond which more padding is added.
    """
    count = Counter(lengths)
    padded = {length: length for length in count}
    while True:
        every = sorted(count.keys() | set(known))
        steps = [
            (count[one] * (longer - one), one, longer)
            for one, longer in pairwise(every)
            if one not in known
        ]
        if not steps or (min(steps)[0] > spare and len(every) <= most):
            return padded
        _, one, longer = min(steps)
        count[longer] += count.pop(one)
        padded = {length: longer if to == one else to for length, to in padded.items()}


def row_count(rows: int) -> int:
    """A number of rows that is not below `rows`, in eight steps between powers of two."""
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def frame_sizes(grid_thw: Int[np.ndarray, "n 3"]) -> list[int]:
    """Number of patches of every frame, in order: h·w for each of the t frames of a grid."""
    return [int(h * w) for t, h, w in grid_thw for _ in range(t)]


def counted_sizes(
    grid_thw: Int[np.ndarray, "n 3"], pixel_values: Shaped[np.ndarray | Array, "patches patch"]
) -> list[int]:
    """`frame_sizes`, checked against the patches.

    Raises:
        ValueError: they are not as many.
    """
    sizes = frame_sizes(grid_thw)
    if sum(sizes) != len(pixel_values):
        raise ValueError(f"grid_thw counts {sum(sizes)} patches, pixel_values {len(pixel_values)}")
    return sizes


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
        rows: number of rows of the batch; those that are left over are empty.
        length: patches per row.

    Returns:
        The packed arrays, and the index of each input patch in the flat [rows · length] order.

    Raises:
        ValueError: the grid does not match the patches, or does not fit rows × length.
    """
    sizes = counted_sizes(grid_thw, pixel_values)
    if (grid_thw[:, 1:] % merge).any():
        raise ValueError(f"heights and widths in patches must be multiples of {merge}")
    if len(sizes) > rows or max(sizes) > length:
        raise ValueError(f"{len(sizes)} rows of {max(sizes)} patches do not fit {rows} × {length}")

    slots = np.concatenate([row * length + np.arange(n) for row, n in enumerate(sizes)])
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
        filled=np.array(sizes + [0] * (rows - len(sizes)), np.int32),
    )
    return packed, slots
