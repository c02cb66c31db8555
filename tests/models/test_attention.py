"""Every kernel against the dense one in float64, on the widths of the real towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unlearn.models.attention import KERNELS, best_kernel, frame_attention
from jax_unlearn.models.tiled_attention import QUERIES, SCORES, step_size

# Rows of 384 in which a frame ends inside a tile, fills the row, and is missing.
LENGTH = 384
FILLED = np.array([334, LENGTH, 0, 20], np.int32)
INSIDE = np.arange(LENGTH) < FILLED[:, None]


def heads(head_dim, length=LENGTH, rows=4, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(rows, length, 2, head_dim)).astype(np.float32) for _ in "qkv"]


def reference(q, k, v, filled):
    """Written out in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for row, n in enumerate(filled):
        score = np.einsum("qhd,khd->hqk", q[row], k[row, :n]) / q.shape[-1] ** 0.5
        weight = np.exp(score - score.max(axis=-1, keepdims=True)) if n else score
        weight /= weight.sum(axis=-1, keepdims=True) if n else 1
        out[row] = np.einsum("hqk,khd->qhd", weight, v[row, :n])
    return out


def attend(q, k, v, filled, kernel):
    """Where the kernel's own hardware is, on it."""
    interpret = kernel != best_kernel(jax.default_backend())
    with jax.default_matmul_precision("highest"):
        out = jax.jit(lambda q, k, v, n: frame_attention(q, k, v, n, kernel, interpret))(
            q, k, v, jnp.asarray(filled)
        )
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree(kernel, head_dim):
    q, k, v = heads(head_dim)
    out = attend(*map(jnp.asarray, (q, k, v)), FILLED, kernel)
    exact = reference(q, k, v, FILLED)
    np.testing.assert_allclose(out[INSIDE], exact[INSIDE], rtol=1e-4, atol=5e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("kernel", KERNELS)
def test_in_bfloat16_only_inputs_and_weights_are_rounded(kernel, head_dim):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in heads(head_dim))
    out = attend(q, k, v, FILLED, kernel)
    error = np.abs(out - reference(q, k, v, FILLED))[INSIDE]
    # A softmax in bfloat16 is off by 0.03 here.
    assert error.max() < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_is_never_seen(kernel):
    q, k, v = heads(64)
    base = attend(*map(jnp.asarray, (q, k, v)), FILLED, kernel)
    for x in (k, v):
        x[~INSIDE] = 1e4
    changed = attend(*map(jnp.asarray, (q, k, v)), FILLED, kernel)
    np.testing.assert_array_equal(base[INSIDE], changed[INSIDE])
    seen = attend(*map(jnp.asarray, (q, k, v)), FILLED + (FILLED == 20), kernel)
    assert np.abs(base - seen)[3, :20].max() > 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [1, 88, QUERIES, QUERIES + 1, 3 * QUERIES - 7])
def test_any_length_is_taken(kernel, length):
    """Rows of 3 × 3 merge blocks have odd ones."""
    q, k, v = heads(16, length, rows=1)
    out = attend(q, k, v, [length], kernel)
    np.testing.assert_allclose(out, reference(q, k, v, [length]), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_derivative_is_that_of_the_dense_kernel(kernel):
    """In float32, against the derivative of attention written out in float64."""
    q, k, v = heads(64)
    weight = np.random.default_rng(9).normal(size=q.shape) * INSIDE[..., None, None]
    interpret = kernel != best_kernel(jax.default_backend())

    def ours(*qkv):
        out = frame_attention(*qkv, jnp.asarray(FILLED), kernel, interpret)
        return (out * weight).sum()

    def dense(q, k, v):
        own = (INSIDE | (FILLED == 0)[:, None])[:, None, None]
        score = jnp.einsum("rqhd,rkhd->rhqk", q, k) / 8
        soft = jax.nn.softmax(jnp.where(own, score, -jnp.inf), axis=-1)
        return (jnp.einsum("rhqk,rkhd->rqhd", soft, v) * weight).sum()

    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(q, k, v)
    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(dense, argnums=(0, 1, 2)))(
            *(x.astype(np.float64) for x in (q, k, v))
        )
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("rows", "heads", "length", "group"),
    [
        (128, 4, 64, 256),  # 64 rows
        (24, 4, 96, 32),  # 8 rows, since 16 × 3 / 2 would be more than fit
        (7, 4, 64, 4),  # an odd number of rows: each alone
        (4, 16, 1024, 4),
        (4, 16, 300, 16),  # tiles of 150 queries
        (1, 12, 128, 12),
        (1, 12, 400, 12),
        (1, 12, 4096, 1),
    ],
)
def test_a_step_is_as_large_as_fits(rows, heads, length, group):
    tiles = -(-length // QUERIES)
    queries = -(-length // tiles)
    assert step_size(rows, heads, length, queries, tiles) == group
    assert group == 1 or group * length * queries <= SCORES


def test_each_backend_has_its_own():
    kernels = [best_kernel(backend) for backend in ("cpu", "gpu", "tpu", "other")]
    assert kernels == ["tiled", "triton", "splash", "xla"]
