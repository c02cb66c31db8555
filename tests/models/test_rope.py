"""RoPE of a bfloat16 tower: its angles and its products are float32, and rounded once."""

from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jax_unlearn.models.qwen3_vision.blocks import rope_angles, rotate
from jax_unlearn.models.qwen3_vision.packing import pack
from jax_unlearn.models.qwen3_vision.tower import forward
from porting import load_vision_tower
from tests import tiny

HEAD_DIM, THETA = 64, 10000.0
# Rows and columns of a large image: bfloat16 has no 257, and 256 twice.
COORDINATES = np.stack([np.arange(300), np.arange(300)[::-1]], axis=-1)


def exact_angles():
    quarter = HEAD_DIM // 4
    inverse = THETA ** -(np.arange(quarter) / quarter)
    half = (COORDINATES[..., None] * inverse).reshape(len(COORDINATES), -1)
    return np.concatenate([half, half], axis=-1)


def test_angles_are_float32():
    """Kills: angles in bfloat16 (`rope_angles`)."""
    found = rope_angles(jnp.asarray(COORDINATES), HEAD_DIM, THETA)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact_angles(), rtol=1e-6)


def test_a_product_is_rounded_once():
    """Kills: the RoPE product in bfloat16 (`rotate`)."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 300, 2, HEAD_DIM)).astype(ml_dtypes.bfloat16)
    angles = exact_angles()[None].astype(np.float32)
    found = rotate(jnp.asarray(x), jnp.asarray(angles))
    assert found.dtype == jnp.bfloat16
    wide = x.astype(np.float64)
    first, second = np.split(wide, 2, axis=-1)
    turned = np.concatenate([-second, first], axis=-1)
    cos, sin = (f(angles.astype(np.float64))[:, :, None] for f in (np.cos, np.sin))
    exact = wide * cos + turned * sin
    error = np.abs(np.asarray(found, np.float64) - exact)
    # Half a unit in the last of eight bits; float32 itself adds next to nothing, but where the two
    # products cancel.
    assert np.all(error <= 2.0**-8 * np.abs(exact) + 1e-6)
    assert (np.asarray(found) == exact.astype(ml_dtypes.bfloat16)).mean() > 0.999


@pytest.fixture(scope="module")
def packed(tiny_tower):
    config = tiny_tower.config
    options = {"merge": 2, "side": config.table_side, "rows": 4, "length": 32}
    return pack(tiny.images(), tiny.GRID, **options)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_attention_in_a_tower_knows_distances_only(dtype, tolerance, tiny_dir, packed):
    """Kills: angles that are made bfloat16 on their way to the blocks, or their products there.

    Where the coordinates begin does not matter, unless they are rounded to the same number.
    """
    parts = nnx.split(load_vision_tower(tiny_dir, dtype))
    here, there, turned = (
        np.asarray(
            forward(*parts, replace(packed, coordinates=coordinates), None).last_hidden_state,
            np.float32,
        )
        for coordinates in (
            packed.coordinates,
            packed.coordinates + 1001,
            packed.coordinates[..., ::-1],
        )
    )
    used = np.arange(32) < packed.filled[:, None]
    off, other = (np.linalg.norm((x - here)[used]) for x in (there, turned))
    size = np.linalg.norm(here[used])
    assert off <= tolerance * size
    # The coordinates do matter here.
    assert other > 0.2 * size
