"""Attention within a frame: one function, with the fastest kernel for each backend.

Every kernel has a reverse-mode derivative.

A row holds one frame and then padding. No token attends to padding, whose own output is finite but
meaningless.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jax_unlearn.models.tiled_attention import Heads, tiled

Kernel = Literal["tiled", "xla", "triton", "splash"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
BEST: dict[str, Kernel] = {"cpu": "tiled", "gpu": "triton", "tpu": "splash"}
# The Pallas kernels need lengths that are multiples of this; other rows are padded.
TILE = 128
# Tile of the derivative of `triton`, which needs more shared memory than the forward kernel.
BACKWARD = 32


def best_kernel(backend: str) -> Kernel:
    """The fastest kernel for a JAX backend."""
    return BEST.get(backend, "xla")


def frame_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    patches: Int[Array, " rows"],
    kernel: Kernel,
    interpret: bool = False,
) -> Heads:
    """softmax(q kᵀ / √head_dim) v over the frame of each row, softmax in float32.

    Args:
        patches: number of patches of each row's frame; the rest of the row is padding.
        kernel: `tiled` is made for CPUs, `xla` computes all scores at once, `triton` (GPU) and
            `splash` (TPU) are JAX's Pallas kernels.
        interpret: run a Pallas kernel in interpret mode, without its hardware, to compare numbers.
    """
    if kernel == "tiled":
        return tiled(q, k, v, patches)
    if kernel == "xla":
        mask = jnp.arange(q.shape[1]) < patches[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
    pallas = triton if kernel == "triton" else splash
    spare = -q.shape[1] % TILE
    q, k, v = (jnp.pad(x, ((0, 0), (0, spare), (0, 0), (0, 0))) for x in (q, k, v))
    # Padding is a segment of its own.
    segment = (jnp.arange(q.shape[1]) < patches[:, None]).astype(jnp.int32)
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
