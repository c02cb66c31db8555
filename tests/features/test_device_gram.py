"""Gram matrices summed on devices against those that the host sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unlearn.features import gram, statistics
from jax_unlearn.features.device_gram import DeviceGram, Pair, add
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.loss import LossWeights
from jax_unlearn.runtime.mesh import make_mesh, over_data
from tests import problems
from tests.features.test_statistics import KINDS, near, side
from tests.problems import value_and_gradient
from tests.running import on_eight_devices

D_IN, E = problems.D_IN, problems.E
BATCH = 24
# One row, which is its own mean; fewer than D_in in one batch, a few more, many batches.
ROWS = {"one": (1, 1), "n < D_in": (4, 3), "some": (9, 4), "n > D_in": (60, 9)}
# The forget term is one that no row has a part in.
WEIGHTS = LossWeights(1.0, 1.0, 0.0, "sum")


def summed(x, mesh="data=1", batch=BATCH):
    """In batches with gaps, in which there stand numbers that must not count."""
    mesh = make_mesh(mesh)
    found = DeviceGram(x.shape[1], mesh)
    slots = mesh.devices.size * batch
    random = np.random.default_rng(0)
    while len(x):
        mask = random.random(slots) < 0.7
        mask[np.flatnonzero(mask)[len(x) :]] = False
        rows = np.full((slots, x.shape[1]), np.nan, np.float32)
        rows[mask], x = x[: mask.sum()], x[mask.sum() :]
        found.add(*jax.device_put((rows, mask), over_data(mesh)))
    return found.finish()


def preserve_term(x, pair):
    """The term and its gradient by A and B as `loss` has them, of rows or of what stands for them.

    In float32, as everything that is trained on.
    """
    x = jnp.asarray(x.astype(np.float32))
    part = LinearProblem(jnp.zeros((1, D_IN)), jnp.zeros((1, E)), x, 1.0, 1.0)
    adapter = LoraAdapter({"x": pair}, alpha=3.0, rank=3)
    (_, terms), gradient = value_and_gradient(adapter, {"x": part}, WEIGHTS)
    return float(terms[1]), (gradient.pairs["x"].a, gradient.pairs["x"].b)


def exact_term(gram, pair):
    """The same in float64 from a Gram matrix."""
    a, b = np.asarray(pair.a, np.float64), np.asarray(pair.b, np.float64)
    size = np.sqrt(np.trace(b @ a @ gram @ a.T @ b.T))
    return size, (b.T @ b @ a @ gram / size, b @ a @ gram @ a.T / size)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(list(ROWS)), st.sampled_from(KINDS))
def test_loss_and_gradient_are_those_of_the_hosts_statistics(seed, shape, kind):
    x, image = side(np.random.default_rng(seed), *ROWS[shape], kind)
    ours, host = summed(x), statistics.statistics(x, image, None)
    assert (ours.by_image, ours.count, ours.rows) == (False, host.count, None)
    np.testing.assert_allclose(ours.total, host.total, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    pair = problems.pair(1.0, seed)
    near(exact_term(ours.full_gram(), pair), exact_term(host.full_gram(), pair))
    near(*(preserve_term(found.equivalent_rows().x, pair) for found in (ours, host)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_a_common_mean_does_not_hide_what_lies_across_it(seed):
    """The change leaves the mean alone, which is a thousand times as large as the rest."""
    x, _ = side(np.random.default_rng(seed), *ROWS["n > D_in"], "large common mean")
    mean = x.mean(axis=0, dtype=np.float64)
    pair = problems.pair(1.0, seed)
    across = pair.a - np.outer(pair.a @ mean, mean) / (mean @ mean)
    pair = problems.LoraPair(a=across, b=pair.b)
    near(exact_term(summed(x).gram, pair), exact_term(gram.gram(x), pair))


def test_many_batches_add_up_as_in_float64():
    steps, step = 10**5, jnp.float32(0.1)
    zero = Pair(jnp.zeros(()), jnp.zeros(()))
    found = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, p: p.plus(x), zero))(step)
    assert sum(map(float, found)) == pytest.approx(steps * float(step), rel=1e-12)


def check_eight_devices():
    x, _ = side(np.random.default_rng(2), *ROWS["n > D_in"], "large common mean")
    for rows in (x, x[:5]):  # with five rows, most devices see none
        found = summed(rows, "data=4,fsdp=2", batch=4)
        assert found.count == len(rows)
        exact = gram.gram(rows)
        assert np.linalg.norm(found.gram - exact) <= 1e-6 * np.linalg.norm(exact)
        np.testing.assert_allclose(found.total, rows.sum(axis=0, dtype=np.float64), rtol=1e-6)
    assert add._cache_size() == 1


def test_devices_add_up():
    on_eight_devices(check_eight_devices)
