"""Attention within segments: one function, with the fastest kernel for each backend.

Every kernel has a reverse-mode derivative.

A row holds several segments one after another, and a token attends to its own segment only. Padding
is segment 0; its output is finite but meaningless.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jax_unlearn.models.blockwise_attention import BLOCK, Heads, blockwise

Kernel = Literal["blockwise", "xla", "triton", "splash"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
BEST: dict[str, Kernel] = {"cpu": "blockwise", "gpu": "triton", "tpu": "splash"}
# The Pallas kernels need lengths that are multiples of this; shorter rows are padded.
TILE = 128
# Tile of the derivative of `triton`, which needs more shared memory than the forward kernel.
BACKWARD = 32


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


def triton(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "rows length"], interpret: bool
) -> Heads:
    """JAX's Pallas kernel for NVIDIA GPUs; lengths are multiples of TILE."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    # In float32 two stages of 128 × 128 tiles exceed the shared memory of a thread block.
    tile = 64 if q.dtype == jnp.float32 else TILE
    sizes = BlockSizes(
        block_q=tile,
        block_k=tile,
        block_q_dkv=BACKWARD,
        block_kv_dkv=BACKWARD,
        block_q_dq=BACKWARD,
        block_kv_dq=BACKWARD,
    )
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
    sizes = kernels.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    attend: Callable[..., Array] = kernels.make_splash_mha_single_device(
        mask=mask, block_sizes=sizes, interpret=interpret
    )

    def row(q: Array, k: Array, v: Array, ids: Array) -> Array:
        q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
        return attend(q, k, v, segment_ids=kernels.SegmentIds(ids, ids)).transpose(1, 0, 2)

    return jax.vmap(row)(q * head_dim**-0.5, k, v, segment)
