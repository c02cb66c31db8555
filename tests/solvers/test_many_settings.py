"""Many trainings at once: each the one that `train` would make, in one program."""

from dataclasses import replace

import numpy as np
import pytest

from jax_unlearn.objective.loss import TERMS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers import many_settings
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.adam.vmapped import run_all
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.grid import Grid, Setting, target_of
from jax_unlearn.solvers.many_settings import solve_all, train_all
from tests import problems
from tests.problems import published
from tests.solvers.test_solve import linear

COMMON = published(epochs=20, chunk=20)
GRID = Grid(("shift", "random"), (0, 1), (0.5, 1.3), (0.4, 2.0), (1.0,), (0.01, 0.05), (1, 3))


def problem_of(target, seed):
    """Two Linears; the target and the seed change the residual only."""
    kinds = {"shift": 0, "random": 1 + seed}
    first, second = (problems.problem(seed=s)["merger.linear_fc2"] for s in (0, 1))
    scale = np.float32(1 + kinds[target])
    return {
        "x": replace(first, residual=first.residual * scale),
        "y": replace(second, residual=second.residual * scale),
    }


def close(trained, common):
    setting = trained.setting
    alone = train(problem_of(*target_of(setting)), setting.config(common))
    for name, pair in trained.adapter.pairs.items():
        theirs = alone.adapter.pairs[name]
        assert pair.a.shape == theirs.a.shape
        np.testing.assert_allclose(pair.a, theirs.a, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(pair.b, theirs.b, rtol=1e-3, atol=1e-4)
    assert (trained.adapter.alpha, trained.adapter.rank) == (
        alone.adapter.alpha,
        alone.adapter.rank,
    )
    row = alone.history[alone.epoch]
    terms = [row[name] for name in TERMS]
    np.testing.assert_allclose(trained.terms, terms, rtol=1e-4, atol=1e-4 * row["total"])


@pytest.mark.parametrize("options", [{"epochs": 45}, {"select": "last", "reduction": "mean"}])
def test_every_setting_is_trained_as_if_alone(options):
    common = replace(COMMON, **options)
    settings = GRID.settings()
    assert len(settings) == len(set(settings)) == 64
    trained = train_all(problem_of, settings, common)
    assert [one.setting for one in trained] == settings
    for one in trained[::7]:
        close(one, common)


def test_alpha_over_rank_is_the_scale_of_each_rank():
    common = replace(COMMON, alpha=1.0)
    for one in train_all(problem_of, GRID.settings(sample=5), common):
        close(one, common)


def test_settings_of_any_number_compile_one_program():
    common = replace(COMMON, epochs=40)
    run_all.clear_cache()
    train_all(problem_of, GRID.settings(), common)
    assert run_all._cache_size() == 1
    # Other values, and other targets, of the same number are the same program.
    other = replace(GRID, lambda_forget=(0.1, 9.0), learning_rate=(0.02, 0.03))
    train_all(problem_of, other.settings(), common)
    assert run_all._cache_size() == 1


def test_batches_that_memory_allows_give_the_same(monkeypatch):
    settings = GRID.settings(sample=11)
    whole = train_all(problem_of, settings, COMMON)
    monkeypatch.setattr(many_settings, "MEMORY", 3 * 4 * 2 * 30 * problems.E)
    seen = []
    pieces = train_all(problem_of, settings, COMMON, seen.append)
    assert len(seen) > 3
    assert seen[-1] == 11
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one.terms, other.terms, rtol=1e-4, atol=1e-5)


def test_a_setting_that_explodes_does_not_spoil_the_others():
    settings = replace(GRID, learning_rate=(0.01, 1e25)).settings()
    trained = train_all(problem_of, settings, COMMON)
    assert {one.stopped for one in trained if one.setting.learning_rate > 1} == {True}
    assert {one.stopped for one in trained if one.setting.learning_rate < 1} == {False}
    assert all(np.isfinite(one.terms).all() for one in trained)
    assert all(np.isfinite(pair.b).all() for one in trained for pair in one.adapter.pairs.values())


def test_a_sample_is_part_of_the_grid_without_a_point_twice():
    sample = GRID.settings(sample=20)
    assert len(set(sample)) == 20
    assert set(sample) < set(GRID.settings())
    assert sample == GRID.settings(sample=20)
    assert GRID.settings(sample=1000) == GRID.settings()


def test_a_seed_of_what_is_not_drawn_is_tried_once():
    settings = GRID.settings(drawn=("random",))
    assert len(settings) == 16 + 32
    assert {one.seed for one in settings if one.target == "shift"} == {0}
    assert set(GRID.settings(sample=40, drawn=("random",))) < set(settings)
    # A name's blank is moved at random, with the setting's own seed.
    assert target_of(replace(settings[0], target="blank", seed=3)) == ("blank", 3)
    assert target_of(replace(settings[0], target="shift", seed=3)) == ("shift", 0)


def test_a_target_of_one_step_is_tried_with_the_smallest_rank():
    settings = GRID.settings(one_rank=True)
    assert {one.rank for one in settings if one.target == "shift"} == {1}
    assert {one.rank for one in settings if one.target == "random"} == {1, 3}
    assert len(settings) == 16 + 32
    # For the closed form finds the same change with any.
    problem = {"x": linear(0, kind="one step")}
    small, large = (solve(problem, published(rank=rank)).history[-1] for rank in (1, 3))
    assert large["total"] == pytest.approx(small["total"], rel=1e-6)


def test_settings_that_cannot_be_meant():
    with pytest.raises(UserError, match="--ranks: give at least one value"):
        replace(GRID, rank=()).settings()
    with pytest.raises(UserError, match="--sample 0"):
        GRID.settings(sample=0)
    with pytest.raises(UserError, match="--rank 9"):
        train_all(problem_of, [Setting("shift", 0, 1.0, 1.0, 1.0, 0.01, 9)], COMMON)
    for optimise in (train_all, solve_all):
        with pytest.raises(UserError, match="--select held_out"):
            optimise(problem_of, GRID.settings(), replace(COMMON, select="held_out"))
