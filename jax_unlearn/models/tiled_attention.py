"""Attention of a frame a row in tiles whose scores stay in a core's cache; made for CPUs."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

# Finite, so that a row without any key does not give NaN.
MASKED = -1e30
# Most queries in a tile.
QUERIES = 256
# Most scores in a step. On one core with 2 MiB of cache 2¹⁶ to 2²¹ take the same time; on two, 2²⁰
# takes a tenth less than 2¹⁸, because more products of a step run at once.
SCORES = 2**20

Heads = Float[Array, "rows length heads head_dim"]


def tiled(q: Heads, k: Heads, v: Heads, patches: Int[Array, " rows"]) -> Heads:
    """Attention over the first `patches` tokens of each row, a tile of queries after the other.

    A step takes several rows if they are short, and some of a row's heads if it is long. Two
    columns save passes over the scores: one in q and k adds the mask, one of ones in v gives the
    softmax's denominator. Scores are [keys, queries], because XLA reduces along the first axis much
    faster.
    """
    rows, length, heads, width = q.shape
    tiles = -(-length // QUERIES)
    queries = -(-length // tiles)
    group = step_size(rows, heads, length, queries, tiles)

    def steps(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(-1, group, x.shape[1], x.shape[3])

    kept = jnp.arange(length) < patches[:, None]
    mask = jnp.where(kept, 0, MASKED).astype(k.dtype)[:, :, None, None]
    k = jnp.concatenate([k, jnp.broadcast_to(mask, (rows, length, heads, 1))], axis=-1)
    q, v = with_ones(q * width**-0.5), with_ones(v)
    q = jnp.pad(q, ((0, 0), (0, tiles * queries - length), (0, 0), (0, 0)))
    of_tiles = steps(q).reshape(-1, group, tiles, queries, width + 1).swapaxes(1, 2)

    def step(of: tuple[Array, Array, Array]) -> Array:
        tile, key, value = of
        if tiles == 1:
            return attend(tile[0], key, value)[None]
        return jax.lax.map(lambda query: attend(query, key, value), tile)

    out = jax.lax.map(step, (of_tiles, steps(k), steps(v)))
    out = out.swapaxes(1, 2).reshape(rows, heads, tiles * queries, width)
    return out[:, :, :length].transpose(0, 2, 1, 3)


# The scores are computed again for the derivative, which would otherwise keep all of them.
@jax.checkpoint
def attend(
    query: Float[Array, "heads queries width"],
    key: Float[Array, "heads keys width"],
    value: Float[Array, "heads keys width"],
) -> Float[Array, "heads queries head_dim"]:
    """Softmax in float32, not normalised before the product with the values."""
    score = jnp.einsum("hkd,hqd->hkq", key, query, preferred_element_type=jnp.float32)
    weight = jnp.exp(score - jax.lax.stop_gradient(score.max(axis=1, keepdims=True)))
    out = jnp.einsum(
        "hkd,hkq->hdq", value, weight.astype(value.dtype), preferred_element_type=jnp.float32
    )
    return (out[:, :-1] / out[:, -1:]).swapaxes(1, 2).astype(value.dtype)


def with_ones(x: Heads) -> Array:
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def step_size(rows: int, heads: int, length: int, queries: int, tiles: int) -> int:
    """How many heads, of one row or of several whole ones, a step computes."""
    room = max(1, SCORES // (length * queries))
    if room < heads or tiles > 1:
        return max(n for n in range(1, heads + 1) if heads % n == 0 and n <= room)
    return heads * math.gcd(rows, 1 << ((room // heads).bit_length() - 1))
