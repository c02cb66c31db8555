"""Attention within segments: one function, with the fastest kernel for each backend.

A row holds several segments one after another, and a token attends to its own segment only. Padding
is segment 0; its output is finite but meaningless.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

Kernel = Literal["blockwise", "xla", "triton", "splash"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
BEST: dict[str, Kernel] = {"cpu": "blockwise", "gpu": "triton", "tpu": "splash"}
# Finite, so that a query without any key does not give NaN.
MASKED = -1e30
# Queries, and keys, in a block of `blockwise`; faster than 128 and 512 on two CPU cores.
BLOCK = 256
# The Pallas kernels need lengths that are multiples of this; shorter rows are padded.
TILE = 128

Heads = Float[Array, "rows length heads head_dim"]


def best_kernel(backend: str) -> Kernel:
    """The fastest kernel for a JAX backend."""
    return BEST.get(backend, "xla")


def skips(kernel: Kernel) -> bool:
    """Whether a kernel skips blocks of other segments, so that long rows cost nothing extra."""
    return kernel == "blockwise"


def segment_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    segment: Int[Array, "rows length"],
    kernel: Kernel,
    interpret: bool = False,
) -> Heads:
    """softmax(q kᵀ / √head_dim) v within each segment, softmax in float32.

    Args:
        segment: segments are contiguous and numbered from 1, all different; 0 is padding.
        kernel: `blockwise` skips blocks of other segments (lax loops, made for CPU), `xla` is
            dense, `triton` (GPU) and `splash` (TPU) are JAX's Pallas kernels.
        interpret: run a Pallas kernel in interpret mode, without its hardware, to compare numbers.
    """
    if kernel == "blockwise" and q.shape[1] > BLOCK:
        return blockwise(q, k, v, segment)
    if kernel in ("blockwise", "xla"):
        # In a row of at most one block there is nothing to skip.
        mask = segment[:, None, :, None] == segment[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    pallas = triton if kernel == "triton" else splash
    # Only short rows, and rows of 3 × 3 merge blocks, are no multiple of TILE and need padding.
    spare = -q.shape[1] % TILE
    q, k, v, segment = (
        jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2))) for x in (q, k, v, segment)
    )
    return pallas(q, k, v, segment, interpret)[:, : q.shape[1] - spare]


def blockwise(q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"]) -> Heads:
    """Attention with an online softmax over the key blocks of each query block's segments.

    The running maximum and sum follow Milakov and Gimelshein 2018 (arXiv:1805.02867), as in
    FlashAttention. Trip counts depend on the data: every mix of segments runs the same program, and
    its cost depends on the sizes of the segments. Forward only: a `fori_loop` with dynamic bounds
    has no reverse-mode derivative.
    """
    shape, tokens = q.shape, segment.size
    block = min(BLOCK, tokens)
    spare = -tokens % block

    def flat(x: Array) -> Array:
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1)))

    ids = flat(segment)
    first, last = key_blocks(ids, block)
    queries = flat(q * shape[-1] ** -0.5).reshape(-1, block, *shape[2:]).transpose(0, 2, 1, 3)
    keys, values = flat(k).transpose(1, 0, 2), flat(v).transpose(1, 0, 2)

    def one(block_of: tuple[Array, Array, Array, Array]) -> Array:
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
        _, total, out = jax.lax.fori_loop(start, stop, step, begin)
        # A block of padding only has no keys, and a total of 0.
        out = out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
        return out.transpose(1, 0, 2).astype(v.dtype)

    out = jax.lax.map(one, (queries, ids.reshape(-1, block), first, last))
    return out.reshape(-1, *shape[2:])[:tokens].reshape(shape)


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


def triton(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"], interpret: bool
) -> Heads:
    """JAX's Pallas kernel for NVIDIA GPUs; lengths are multiples of TILE."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    # In float32 two stages of 128 × 128 tiles exceed the shared memory of a thread block.
    tile = 64 if q.dtype == jnp.float32 else TILE
    sizes = BlockSizes(block_q=tile, block_k=tile)
    scale = q.shape[-1] ** -0.5
    return mha(q, k, v, segment, sm_scale=scale, block_sizes=sizes, interpret=interpret)


def splash(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"], interpret: bool
) -> Heads:
    """JAX's Pallas kernel for TPUs; lengths are multiples of TILE."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, head_dim = q.shape[1:]
    tile = math.gcd(length, 4 * TILE)
    mask = masks.MultiHeadMask([masks.FullMask((length, length))] * heads)
    sizes = kernels.BlockSizes(block_q=tile, block_kv=tile)
    attend: Callable[..., Array] = kernels.make_splash_mha_single_device(
        mask=mask, block_sizes=sizes, interpret=interpret
    )

    def row(q: Array, k: Array, v: Array, ids: Array) -> Array:
        q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
        return attend(q, k, v, segment_ids=kernels.SegmentIds(ids, ids)).transpose(1, 0, 2)

    return jax.vmap(row)(q * head_dim**-0.5, k, v, segment)
