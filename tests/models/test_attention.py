"""Every kernel against the dense one in float64, on the widths of the real towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unlearn.models.attention import KERNELS, best_kernel, segment_attention
from jax_unlearn.models.blockwise_attention import BLOCK, key_blocks

# Two rows of 384: segments that end inside a block, and padding between them.
SEGMENTS = np.stack(
    [
        np.repeat(np.array([1, 2, 3, 0], np.int32), [100, 84, 150, 50]),
        np.repeat(np.array([4, 5, 0], np.int32), [200, 20, 164]),
    ]
)


def heads(head_dim, length=384, rows=2, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(rows, length, 2, head_dim)).astype(np.float32) for _ in "qkv"]


def reference(q, k, v, segment):
    """Written out in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    score = np.einsum("rqhd,rkhd->rhqk", q, k) / q.shape[-1] ** 0.5
    own = segment[:, None, :, None] == segment[:, None, None, :]
    weight = np.exp(np.where(own, score - score.max(axis=-1, keepdims=True), -np.inf))
    weight /= weight.sum(axis=-1, keepdims=True)
    return np.einsum("rhqk,rkhd->rqhd", weight, v)


def attend(q, k, v, segment, kernel):
    """Where the kernel's own hardware is, on it."""
    interpret = kernel != best_kernel(jax.default_backend())
    with jax.default_matmul_precision("highest"):
        out = jax.jit(lambda q, k, v, s: segment_attention(q, k, v, s, kernel, interpret))(
            q, k, v, jnp.asarray(segment)
        )
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree(kernel, head_dim):
    q, k, v = heads(head_dim)
    out = attend(*map(jnp.asarray, (q, k, v)), SEGMENTS, kernel)
    inside = SEGMENTS > 0
    np.testing.assert_allclose(
        out[inside], reference(q, k, v, SEGMENTS)[inside], rtol=1e-4, atol=5e-6
    )
    assert np.isfinite(out).all()


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("kernel", KERNELS)
def test_in_bfloat16_only_inputs_and_weights_are_rounded(kernel, head_dim):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in heads(head_dim))
    out = attend(q, k, v, SEGMENTS, kernel)
    inside = SEGMENTS > 0
    error = np.abs(out - reference(q, k, v, SEGMENTS))[inside]
    # A softmax in bfloat16 is off by 0.03 here.
    assert error.max() < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_segments_are_never_seen(kernel):
    q, k, v = heads(64)
    base = attend(*map(jnp.asarray, (q, k, v)), SEGMENTS, kernel)
    other = SEGMENTS != 2
    for x in (k, v):
        x[other] = 1e4
    changed = attend(*map(jnp.asarray, (q, k, v)), SEGMENTS, kernel)
    np.testing.assert_array_equal(base[SEGMENTS == 2], changed[SEGMENTS == 2])
    assert np.abs(base - changed)[SEGMENTS == 3].max() > 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [1, 88, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_any_length_is_taken(kernel, length):
    """Rows of 3 × 3 merge blocks have odd ones, and those of small frames are short."""
    q, k, v = heads(16, length, rows=1)
    segment = np.ones((1, length), np.int32)
    out = attend(*map(jnp.asarray, (q, k, v)), segment, kernel)
    np.testing.assert_allclose(out, reference(q, k, v, segment), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_derivative_is_that_of_the_dense_kernel(kernel):
    """In float32, against the derivative of attention written out in float64."""
    q, k, v = heads(64)
    weight = np.random.default_rng(9).normal(size=q.shape) * (SEGMENTS > 0)[..., None, None]
    interpret = kernel != best_kernel(jax.default_backend())

    def ours(*qkv):
        out = segment_attention(*qkv, jnp.asarray(SEGMENTS), kernel, interpret)
        return (out * weight).sum()

    def dense(q, k, v):
        own = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]
        score = jnp.einsum("rqhd,rkhd->rhqk", q, k) / 8
        soft = jax.nn.softmax(jnp.where(own, score, -jnp.inf), axis=-1)
        return (jnp.einsum("rhqk,rkhd->rqhd", soft, v) * weight).sum()

    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(q, k, v)
    with jax.enable_x64(True):
        exact = jax.grad(dense, argnums=(0, 1, 2))(*(x.astype(np.float64) for x in (q, k, v)))
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_blockwise_visits_only_the_blocks_of_its_own_segments():
    ids = np.repeat([1, 2, 3, 0], [8, 5, 3, 8])
    first, stop = key_blocks(jnp.asarray(ids), 4)
    assert first[:4].tolist() == [0, 0, 2, 2]
    assert stop[:4].tolist() == [2, 2, 4, 4]
    assert (np.asarray(first) >= np.asarray(stop))[4:].all()  # padding alone: no key at all


def test_each_backend_has_its_own():
    kernels = [best_kernel(backend) for backend in ("cpu", "gpu", "tpu", "other")]
    assert kernels == ["blockwise", "triton", "splash", "xla"]
