"""Attention that skips blocks of other segments, in lax loops made for CPUs, with its derivative.

Trip counts depend on the data: every mix of segments runs the same program, and its cost depends on
the sizes of the segments. JAX cannot differentiate such loops, so the derivative is written here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

# Finite, so that a query without any key does not give NaN.
MASKED = -1e30
# Queries, and keys, in a block; faster than 128 and 512 on two CPU cores.
BLOCK = 256

Heads = Float[Array, "rows length heads head_dim"]
# Blocks of queries, [blocks, heads, block, head_dim], and all keys, [heads, tokens, head_dim].
Blocks = Float[Array, "blocks heads block head_dim"]
Keys = Float[Array, "heads tokens head_dim"]
Saved = tuple[Array, Array, Array, Array, Array, Array]


@jax.custom_vjp
def blockwise(q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"]) -> Heads:
    """Attention with an online softmax over the key blocks of each query block's segments.

    The running maximum and sum follow Milakov and Gimelshein 2018 (arXiv:1805.02867), as in
    FlashAttention.
    """
    return attend(q, k, v, segment)[0]


def attend(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"]
) -> tuple[Heads, Float[Array, "blocks heads block"]]:
    """(output, logarithm of the softmax's denominator for each query)."""
    shape, tokens = q.shape, segment.size
    block = min(BLOCK, tokens)
    ids = flat(segment, block)
    first, last = key_blocks(ids, block)
    queries = query_blocks(q * shape[-1] ** -0.5, block)
    keys, values = flat(k, block).transpose(1, 0, 2), flat(v, block).transpose(1, 0, 2)

    def one(block_of: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        query, own, start, stop = block_of

        def step(i: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = running
            key = jax.lax.dynamic_slice_in_dim(keys, i * block, block, 1)
            value = jax.lax.dynamic_slice_in_dim(values, i * block, block, 1)
            other = jax.lax.dynamic_slice_in_dim(ids, i * block, block)
            score = jnp.einsum("hqd,hkd->hqk", query, key, preferred_element_type=jnp.float32)
            score = jnp.where(own[:, None] == other, score, MASKED)
            higher = jnp.maximum(top, score.max(axis=-1))
            weight, faded = jnp.exp(score - higher[..., None]), jnp.exp(top - higher)
            part = jnp.einsum(
                "hqk,hkd->hqd", weight.astype(v.dtype), value, preferred_element_type=jnp.float32
            )
            return higher, total * faded + weight.sum(axis=-1), out * faded[..., None] + part

        heads = query.shape[:2]
        begin = (jnp.full(heads, MASKED), jnp.zeros(heads), jnp.zeros(query.shape))
        top, total, out = jax.lax.fori_loop(start, stop, step, begin)
        # A block of padding only has no keys, and a total of 0.
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        out = out / total[..., None]
        return out.transpose(1, 0, 2).astype(v.dtype), top + jnp.log(total)

    out, normaliser = jax.lax.map(one, (queries, ids.reshape(-1, block), first, last))
    return out.reshape(-1, *shape[2:])[:tokens].reshape(shape), normaliser


def forward(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"]
) -> tuple[Heads, Saved]:
    out, normaliser = attend(q, k, v, segment)
    return out, (q, k, v, segment, out, normaliser)


def backward(saved: Saved, change: Heads) -> tuple[Heads, Heads, Heads, np.ndarray]:
    """The derivatives by q, k and v, over the same blocks as the forward pass.

    With P the softmax and O = P V, for a cotangent dO: dV = Pᵀ dO and
    dS = P ⊙ (dO Vᵀ - rowsum(dO ⊙ O)), from which dQ = dS K and dK = dSᵀ Q, both times the scale.
    Source: Dao et al. 2022, FlashAttention (arXiv:2205.14135), appendix B.
    """
    q, k, v, segment, out, normaliser = saved
    shape, tokens = q.shape, segment.size
    block, scale = min(BLOCK, tokens), shape[-1] ** -0.5
    ids = flat(segment, block)
    first, last = key_blocks(ids, block)
    keys, values = flat(k, block).transpose(1, 0, 2), flat(v, block).transpose(1, 0, 2)
    inner = (change.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    blocks = (query_blocks(q * scale, block), query_blocks(change, block))
    inners = query_blocks(inner, block)[..., 0]

    def one(
        by_keys: tuple[Array, Array], of: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        query, changed, inner, normaliser, own, start, stop = of

        def step(i: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            by_query, by_key, by_value = running
            at = i * block
            key = jax.lax.dynamic_slice_in_dim(keys, at, block, 1)
            value = jax.lax.dynamic_slice_in_dim(values, at, block, 1)
            other = jax.lax.dynamic_slice_in_dim(ids, at, block)
            score = product("hqd,hkd->hqk", query, key)
            weight = jnp.exp(score - normaliser[..., None]) * (own[:, None] == other)
            by_score = weight * (product("hqd,hkd->hqk", changed, value) - inner[..., None])
            by_query += product("hqk,hkd->hqd", by_score, key)
            by_key = add_at(by_key, product("hqk,hqd->hkd", by_score, query), at)
            by_value = add_at(by_value, product("hqk,hqd->hkd", weight, changed), at)
            return by_query, by_key, by_value

        begin = (jnp.zeros(query.shape), *by_keys)
        by_query, *by_keys_after = jax.lax.fori_loop(start, stop, step, begin)
        return (by_keys_after[0], by_keys_after[1]), by_query * scale

    zeros = (jnp.zeros(keys.shape), jnp.zeros(values.shape))
    of = (*blocks, inners, normaliser, ids.reshape(-1, block), first, last)
    (by_key, by_value), by_query = jax.lax.scan(one, zeros, of)

    def heads(x: Array, dtype: np.dtype) -> Array:
        return x.reshape(-1, *shape[2:])[:tokens].reshape(shape).astype(dtype)

    return (
        heads(by_query.transpose(0, 2, 1, 3), q.dtype),
        heads(by_key.transpose(1, 0, 2), k.dtype),
        heads(by_value.transpose(1, 0, 2), v.dtype),
        np.zeros(segment.shape, jax.dtypes.float0),
    )


blockwise.defvjp(forward, backward)


def product(axes: str, one: Array, other: Array) -> Array:
    """A product summed in float32."""
    return jnp.einsum(axes, one, other, preferred_element_type=jnp.float32)


def add_at(total: Keys, part: Float[Array, "heads block head_dim"], at: Array) -> Keys:
    """Add a block of keys to the sum of all."""
    earlier = jax.lax.dynamic_slice_in_dim(total, at, part.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(total, earlier + part, at, 1)


def flat(x: Array, block: int) -> Array:
    """All rows as one, padded to whole blocks."""
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return jnp.pad(x, ((0, -len(x) % block), *((0, 0),) * (x.ndim - 1)))


def query_blocks(x: Heads, block: int) -> Blocks:
    return flat(x, block).reshape(-1, block, *x.shape[2:]).transpose(0, 2, 1, 3)


def key_blocks(
    ids: Int[Array, " tokens"], block: int
) -> tuple[Int[Array, " blocks"], Int[Array, " blocks"]]:
    """For each block of queries, the range [first, last) of key blocks of its segments."""
    index = jnp.arange(ids.size)
    changes = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    begins = jax.lax.cummax(jnp.where(changes, index, 0))
    ends = jax.lax.cummin(jnp.where(jnp.roll(changes, -1), index + 1, ids.size), reverse=True)
    # Padding needs no keys.
    begins, ends = jnp.where(ids == 0, ids.size, begins), jnp.where(ids == 0, -1, ends)
    first = begins.reshape(-1, block).min(axis=1) // block
    return first, -(-ends.reshape(-1, block).max(axis=1) // block)
