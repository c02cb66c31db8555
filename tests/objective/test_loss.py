"""The loss against PyTorch on the same numbers, and on fewer rows against all of them."""

import jax
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import compress, linear_problem
from jax_unlearn.objective.loss import LossWeights, loss
from jax_unlearn.objective.merger import merger_problem, merger_tokens
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
    norm_and_gradient = jax.jit(jax.value_and_grad(product_norm))
    for seed in range(50):
        random = np.random.default_rng(seed)
        a, b = random.normal(size=(1, 8)), random.normal(size=(4, 1))
        pair = LoraPair(
            a=np.concatenate([a, a]).astype(np.float32),
            b=np.concatenate([b, -b], axis=1).astype(np.float32),
        )
        norm, gradient = norm_and_gradient(pair)
        assert norm < 1e-2
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


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


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_derivative_by_every_operand_is_right(reduction):
    """By the adapter, the rows of both sides, and the target: none is silently zero."""
    weight, bias, forget, target, preserve = problems.arrays(6, 7)
    pair = problems.pair(1.0)
    weights = LossWeights(1.3, 0.4, 1.0, reduction)

    @jax.jit
    def total(a, b, forget, target, preserve):
        adapter = LoraAdapter({"x": LoraPair(a, b)}, alpha=0.6, rank=3)
        problem = {"x": linear_problem(weight, bias, forget, target, preserve)}
        return loss(adapter, problem, weights)[0]

    operands = (pair.a, pair.b, forget, target, preserve)
    check_grads(total, operands, order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)
    gradients = jax.jit(jax.grad(total, argnums=range(5)))(*operands)
    assert all(np.abs(one).max() > 1e-4 for one in gradients)


def test_the_derivative_through_a_merger_is_right():
    random = np.random.default_rng(3)
    w1, w2 = (random.normal(size=shape).astype(np.float32) / 3 for shape in ((12, 10), (5, 12)))
    a, b = (random.normal(size=shape).astype(np.float32) / 3 for shape in ((2, 10), (12, 2)))
    forget, preserve = (random.normal(size=(n, 10)).astype(np.float32) for n in (4, 6))
    target = random.normal(size=(4, 5)).astype(np.float32)

    @jax.jit
    def total(a, b, forget, target, preserve):
        adapter = LoraAdapter({"m.linear_fc1": LoraPair(a, b)}, alpha=2.0, rank=2)
        sides = (merger_tokens(w1, np.zeros(12, np.float32), x) for x in (forget, preserve))
        problem = {
            "m": merger_problem(w2, np.zeros(5, np.float32), next(sides), target, next(sides))
        }
        return loss(adapter, problem, WEIGHTS)[0]

    operands = (a, b, forget, target, preserve)
    check_grads(total, operands, order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_arguments_are_converted_or_named():
    weight, bias, forget, target, preserve = problems.arrays(6, 7)
    usual = linear_problem(weight, bias, forget, target, preserve)
    for convert in (lambda x: x.tolist(), torch.tensor, lambda x: torch.tensor(x).double()):
        other = linear_problem(*map(convert, (weight, bias, forget, target, preserve)))
        for one, same in zip(jax.tree.leaves(usual), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(one, same)
    # A copy: the caller may change an array afterwards.
    given = forget.copy()
    problem = linear_problem(weight, bias, given, target, preserve)
    given[:] = 0
    np.testing.assert_array_equal(problem.forget, usual.forget)
    none = linear_problem(weight, None, forget, target, preserve)
    zero = linear_problem(weight, 0.0 * bias, forget, target, preserve)
    np.testing.assert_array_equal(none.residual, zero.residual)
    message = r"target has shape \[5, 8\], expected \[n_f = 6, E = 8\]"
    with pytest.raises(ValueError, match=message):
        linear_problem(weight, bias, forget, target[:5], preserve)
    with pytest.raises(ValueError, match="preserve is not an array of numbers, but of <U1"):
        linear_problem(weight, bias, forget, target, ["a", "b"])
