"""The change of a Linear, with and without one of its bias."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unlearn.models.lora import LoraAdapter, LoraPair, init_adapter, lora_delta


def drawn(seed=0):
    """A pair with a bias, and rows x."""
    random = np.random.default_rng(seed)
    shapes = (2, 5), (4, 2), (4,), (7, 5)
    a, b, bias, x = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return LoraPair(a=a, b=b, bias=bias), x


def test_the_scale_is_of_the_bias_too():
    pair, x = drawn()
    product = x.astype(np.float64) @ pair.a.T @ pair.b.T
    for one, expected in ((pair, product + pair.bias), (replace(pair, bias=None), product)):
        ours = lora_delta(jnp.asarray(x), one, 0.3)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, 0.3 * expected, rtol=1e-5, atol=1e-6)


def test_no_bias_is_no_leaf():
    pair, x = drawn()
    with_bias = LoraAdapter({"merger.linear_fc2": pair}, alpha=1.0, rank=2)
    without = LoraAdapter({"merger.linear_fc2": replace(pair, bias=None)}, alpha=1.0, rank=2)
    for adapter, leaves in ((with_bias, 3), (without, 2)):
        assert len(jax.tree.leaves(adapter)) == leaves
        doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree))(adapter)
        change = lora_delta(jnp.asarray(x), doubled.pairs["merger.linear_fc2"], 1.0)
        plain = lora_delta(jnp.asarray(x), adapter.pairs["merger.linear_fc2"], 1.0)
        extra = 0 if leaves == 2 else 2 * pair.bias
        np.testing.assert_allclose(change, 4 * plain - extra, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_has_no_bias():
    adapter = init_adapter(jax.random.key(0), {"merger.linear_fc2": (4, 5)}, 2, 1.0)
    assert adapter.pairs["merger.linear_fc2"].bias is None


@pytest.mark.parametrize("precision", ["default", "bfloat16"])
def test_the_delta_is_never_rounded_to_less_than_float32(precision):
    """A GPU would take TF32, and a large mean in x would not cancel against the bias."""
    pair, x = drawn()
    with jax.default_matmul_precision(precision):
        program = str(jax.make_jaxpr(lambda x: lora_delta(x, pair, 1.0))(jnp.asarray(x)))
    assert program.count("dot_general[") == 2
    assert program.count("HIGHEST") == 4
