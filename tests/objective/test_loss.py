"""The loss against PyTorch on the same numbers, and on fewer rows against all of them."""

import jax
import numpy as np
import pytest
import torch

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import compress, linear_problem
from jax_unlearn.objective.loss import LossWeights, loss
from jax_unlearn.objective.norms import product_norm, safe_norm
from tests import problems
from tests.problems import value_and_gradient

WEIGHTS = LossWeights(1.3, 0.4, 1.0, "sum")


def torch_loss(arrays, a, b, scale, mean=False):
    weight, bias, forget, target, preserve = (torch.tensor(x) for x in arrays)
    delta = scale * b @ a
    terms = [
        1.3 * torch.norm(target - (forget @ weight.T + bias + forget @ delta.T)),
        0.4 * torch.norm(preserve @ delta.T),
        torch.norm(b @ a),
    ]
    if mean:
        terms[0] = terms[0] / len(forget) ** 0.5
        terms[1] = terms[1] / len(preserve) ** 0.5
    return sum(terms)


def ours(problem, pair, scale=0.2, weights=WEIGHTS):
    rank = pair.a.shape[0]
    adapter = LoraAdapter({"x": pair}, alpha=scale * rank, rank=rank)
    (total, _), gradient = value_and_gradient(adapter, problem, weights)
    return float(total), gradient.pairs["x"]


def close(mine, other, tolerance=1e-5):
    mine, other = np.asarray(mine, np.float64), np.asarray(other, np.float64)
    assert np.abs(mine - other).max() <= tolerance * max(np.abs(other).max(), 1e-30)


@pytest.mark.parametrize("b_scale", [0.0, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_gradient_are_torchs(b_scale, reduction):
    arrays, pair = problems.arrays(), problems.pair(b_scale)
    weights = LossWeights(1.3, 0.4, 1.0, reduction)
    total, gradient = ours({"x": linear_problem(*arrays)}, pair, weights=weights)
    a, b = (torch.tensor(x, requires_grad=True) for x in (pair.a, pair.b))
    theirs = torch_loss(arrays, a, b, 0.2, reduction == "mean")
    theirs.backward()
    close(total, theirs.item())
    close(gradient.b, b.grad)
    # At B = 0 the loss does not depend on A: both gradients are exactly zero, and finite.
    close(gradient.a, a.grad)
    assert np.isfinite(gradient.a).all()
    assert np.abs(gradient.b).max() > 0


def test_paths_add_up():
    first, second = problems.arrays(seed=1), problems.arrays(seed=2)
    pair = problems.pair(1.0)
    alone = [ours({"x": linear_problem(*arrays)}, pair)[0] for arrays in (first, second)]
    both = {"x": linear_problem(*first), "y": linear_problem(*second)}
    adapter = LoraAdapter({"x": pair, "y": pair}, alpha=0.6, rank=3)
    close(loss(adapter, both, WEIGHTS)[0], sum(alone))


def test_norm_of_zero_has_a_zero_gradient():
    assert np.all(jax.grad(safe_norm)(np.zeros((3, 4), np.float32)) == 0)
    pair = LoraPair(a=np.ones((2, 5), np.float32), b=np.zeros((4, 2), np.float32))
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(jax.grad(product_norm)(pair)))


def test_product_norm_is_that_of_the_product():
    pair = problems.pair(1.0)
    close(product_norm(pair), np.linalg.norm(pair.b @ pair.a))


def test_product_norm_of_a_product_that_cancels_is_zero_and_not_nan():
    for seed in range(50):
        random = np.random.default_rng(seed)
        a, b = random.normal(size=(1, 8)), random.normal(size=(4, 1))
        pair = LoraPair(
            a=np.concatenate([a, a]).astype(np.float32),
            b=np.concatenate([b, -b], axis=1).astype(np.float32),
        )
        assert float(product_norm(pair)) < 1e-2
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(product_norm)(pair)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"n_forget": 5, "n_preserve": 7},
        {"n_forget": 400, "n_preserve": 900},
        {"n_forget": 400, "n_preserve": 900, "common": 100.0},
        {"n_forget": 400, "n_preserve": 900, "features_rank": 4},
    ],
    ids=["medium", "few", "many", "large common mean", "rank-deficient"],
)
def test_compressed_rows_carry_the_same_loss(case, reduction):
    arrays, pair = problems.arrays(**case), problems.pair(1.0)
    full = {"x": linear_problem(*arrays)}
    small = compress(full)
    d_in, e = pair.a.shape[1], pair.b.shape[0]
    assert len(small["x"].forget) <= d_in + e
    assert len(small["x"].preserve) <= d_in
    weights = LossWeights(1.3, 0.4, 1.0, reduction)
    total, gradient = ours(full, pair, weights=weights)
    small_total, small_gradient = ours(small, pair, weights=weights)
    close(small_total, total)
    close(small_gradient.a, gradient.a)
    close(small_gradient.b, gradient.b)
