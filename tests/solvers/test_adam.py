"""The loop against PyTorch's, what it keeps, and how often it compiles."""

import jax
import numpy as np
import pytest
import torch

from jax_unlearn import UserError, linear_problem, train
from jax_unlearn.objective.loss import loss
from jax_unlearn.solvers.adam.loop import run_chunk
from tests import problems
from tests.objective.test_loss import torch_loss
from tests.problems import published

NAME = "merger.linear_fc2"


def total(adapter, problem, config):
    return float(loss(adapter, problem, config.loss_weights())[0])


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_hundred_steps_follow_the_torch_loop(alpha):
    config = published(rank=3, alpha=alpha, epochs=100, chunk=30, seed=5)
    problem = problems.problem()
    start = config.init(problem)
    history = train(problem, config).history

    pair = start.pairs[NAME]
    a, b = (torch.tensor(np.array(x), requires_grad=True) for x in (pair.a, pair.b))
    adam = torch.optim.Adam([a, b], lr=0.01)
    for row in history:
        theirs = torch_loss(problems.arrays(), a, b, start.scale)
        assert row["total"] == pytest.approx(theirs.item(), rel=1e-4)
        adam.zero_grad()
        theirs.backward()
        adam.step()
    assert len(history) == 101
    assert history[-1]["total"] < history[0]["total"] - 0.05


def test_the_initial_adapter_changes_nothing_and_is_kaiming_uniform():
    pair = published(rank=3).init(problems.problem()).pairs[NAME]
    assert np.all(np.asarray(pair.b) == 0)
    bound = 1 / problems.D_IN**0.5
    assert 0.8 * bound < np.abs(pair.a).max() <= bound


def test_same_seed_same_bytes_and_another_seed_others():
    config = published(rank=3, epochs=20)
    first, second = (train(problems.problem(), config).adapter for _ in range(2))
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert x.tobytes() == y.tobytes()
    other = train(problems.problem(), published(rank=3, epochs=20, seed=1)).adapter
    assert not np.array_equal(first.pairs[NAME].a, other.pairs[NAME].a)


def test_best_is_the_adapter_that_had_the_lowest_loss():
    # A large step makes the loss go up and down, so that the best epoch is not the last.
    config = published(rank=3, epochs=60, learning_rate=3.0, chunk=7)
    problem = problems.problem()
    result = train(problem, config)
    totals = [row["total"] for row in result.history]
    assert result.epoch == int(np.argmin(totals))
    assert result.epoch != 60
    assert total(result.adapter, problem, config) == pytest.approx(min(totals), rel=1e-5)

    last = train(problem, published(rank=3, epochs=60, learning_rate=3.0, select="last"))
    assert last.epoch == 60
    assert total(last.adapter, problem, config) == pytest.approx(totals[-1], rel=1e-4)
    assert totals[-1] > min(totals) * 1.001


def test_chunks_do_not_change_the_result():
    results = [train(problems.problem(), published(rank=3, epochs=25, chunk=n)) for n in (5, 25)]
    totals = [[row["total"] for row in result.history] for result in results]
    np.testing.assert_allclose(*totals, rtol=1e-6)


def test_held_out_selection_takes_the_lowest_held_out_loss():
    """Few rows with noisy targets: what is learnt first carries over, the rest does not."""
    weight, bias, forget, target, preserve = problems.arrays(n_forget=60)
    target = 3 * np.random.default_rng(0).normal(size=target.shape).astype(np.float32)
    fit, held_out = (
        {NAME: linear_problem(weight, bias, forget[rows], target[rows], preserve)}
        for rows in (slice(10), slice(10, 60))
    )
    settings = {"rank": 5, "epochs": 600, "chunk": 20, "lambda_preserve": 0.0}
    config = published(select="held_out", lambda_weight=0.0, **settings)
    result = train(fit, config, held_out=held_out)
    assert 0 < result.epoch < 600
    assert result.epoch % 20 == 0
    chosen = total(result.adapter, held_out, config)
    assert chosen < total(config.init(fit), held_out, config)
    last = train(fit, published(select="last", lambda_weight=0.0, **settings))
    assert chosen < total(last.adapter, held_out, config)


def test_a_loss_that_explodes_stops_and_keeps_the_last_good_adapter():
    problem = problems.problem()
    result = train(problem, published(rank=3, epochs=50, learning_rate=1e25))
    assert "not finite" in result.stopped
    assert len(result.history) < 51
    assert all(np.isfinite(row["total"]) for row in result.history)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.adapter))


def test_rows_that_are_not_finite_are_refused():
    weight, bias, forget, target, preserve = problems.arrays()
    target[0, 0] = np.nan
    with pytest.raises(UserError, match="not finite at the start"):
        train({NAME: linear_problem(weight, bias, forget, target, preserve)}, published(rank=3))


@pytest.mark.parametrize("rank", [0, problems.E + 1])
def test_a_rank_that_no_linear_has_is_refused(rank):
    with pytest.raises(UserError, match=f"--rank {rank}"):
        train(problems.problem(), published(rank=rank))


@pytest.mark.parametrize("setting", ["epochs", "seed", "chunk"])
def test_negative_settings_are_refused(setting):
    with pytest.raises(UserError, match=f"--{setting} -1"):
        train(problems.problem(), published(rank=3, **{setting: -1}))


def test_held_out_selection_needs_held_out_rows():
    with pytest.raises(UserError, match="held-out"):
        train(problems.problem(), published(rank=3, select="held_out"))


def test_one_compilation_serves_every_chunk_and_every_weight():
    run_chunk.clear_cache()
    problem = problems.problem()
    for changed in ({}, {"lambda_forget": 0.3}, {"learning_rate": 0.1}, {"seed": 4}):
        train(problem, published(rank=3, epochs=40, chunk=10, **changed))
    assert run_chunk._cache_size() == 1
