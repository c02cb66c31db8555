"""The closed form takes the moments of rows once, however many settings it is asked for."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console

from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.solvers.closed_form import moments
from jax_unlearn.solvers.closed_form.moments import with_moments
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.grid import Grid, target_of
from jax_unlearn.solvers.many_settings import solve_all
from tests import problems
from tests.problems import published


@pytest.fixture
def reductions(monkeypatch):
    """The Linears whose moments are taken, one after another."""
    seen, original = [], moments.reduce

    def reduce(linear):
        seen.append(linear)
        return original(linear)

    monkeypatch.setattr(moments, "reduce", reduce)
    return seen


def two_linears(seed=0):
    """Their residuals are of this seed's target."""
    first, second = (problems.problem(seed=s)["merger.linear_fc2"] for s in (0, 1))
    return {"x": first, "y": replace(second, residual=second.residual * np.float32(1 + seed))}


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_settings_of_one_problem_share_them_and_find_the_same_bytes(reductions):
    configs = published(rank=2), published(rank=3, lambda_forget=4.0, starts=2, seed=5)
    alone = [solve(two_linears(), config) for config in configs]
    assert len(reductions) == 4
    shared = with_moments(two_linears())
    for config, theirs in zip(configs, alone, strict=True):
        ours = solve(shared, config)
        assert ours.history == theirs.history
        assert ours.lower_bound == theirs.lower_bound
        assert same(ours.adapter, theirs.adapter)
    assert len(reductions) == 6


def test_a_sweep_takes_them_once_for_each_target(reductions):
    grid = Grid(("shift", "random"), (0, 1), (0.5, 1.3), (0.4,), (1.0,), (0.01,), (1, 3))
    settings = grid.settings()
    # One of shift, whatever the seed; of random one for each seed.
    assert len({target_of(setting) for setting in settings}) == 3
    solve_all(lambda _, seed: two_linears(seed), settings, published())
    assert len(settings) == 16
    assert len(reductions) == 3 * 2


def test_a_search_takes_them_once(run, reductions, monkeypatch):
    monkeypatch.setattr("jax_unlearn.solvers.until_forgotten.MOST", 3)
    settings = {"optimizer": "closed_form", "until_forgotten": 0.999}
    config = read_config(run).replace(**settings)
    extracted = read_statistics(run).extracted()
    found = fit_adapter(extracted, config, Console(quiet=True)).found
    assert found.trials == 3
    assert len(reductions) == len(extracted.linears) == 3
