"""The iteration within a span: of one setting, and of others that go on from what it left."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.solvers.closed_form import subspace
from jax_unlearn.solvers.closed_form.moments import reduce, with_moments
from jax_unlearn.solvers.closed_form.ridge import ridge_of
from jax_unlearn.solvers.closed_form.solve import costs_of, solve
from jax_unlearn.solvers.closed_form.subspace import Subspace, recycled
from jax_unlearn.solvers.grid import Grid
from jax_unlearn.solvers.many_settings import solve_all
from tests.problems import published
from tests.solvers.test_solve import KINDS, NAME, linear, never_rises

# More rows than columns, so that nothing is reduced; more columns than a factor takes.
SHAPE = (160, 60, 300, 250)


def known(kind, seed=0, **changed):
    """(Moments, costs)."""
    part = linear(seed, SHAPE, kind)
    return reduce(part).moments, costs_of(part, published(**changed))


def start(moments, costs):
    return costs[0] * moments.square**0.5 * np.ones(3)


@pytest.fixture
def factors(monkeypatch):
    """As for a large problem; counts the factors of whole matrices."""
    seen, original = [], Subspace.factor

    def factor(self, *arguments):
        seen.append(arguments)
        original(self, *arguments)

    monkeypatch.setattr(Subspace, "factor", factor)
    monkeypatch.setattr(subspace, "FACTORED", 0)
    monkeypatch.setattr(subspace, "WIDEST", 1.0)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_bases_stay_orthonormal_and_products_are_theirs(kind):
    moments, costs = known(kind)
    space = Subspace(moments)
    for shares in ([1, 1, 1], [1, 0.1, 1], [1, 1, 30]):
        space.factor(costs, 3, start(moments, costs) * np.array(shares, float), 4)
    for basis in (space.left, space.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    left, right = space.left, space.right
    for ours, theirs in (
        (space.moments.forget, left.T @ moments.forget @ left),
        (space.moments.preserve, left.T @ moments.preserve @ left),
        (space.moments.cross, left.T @ moments.cross @ right),
        # Nothing of the span's outputs is left out.
        (space.moments.cross @ right.T, left.T @ moments.cross),
    ):
        assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)


def test_a_span_ends_where_there_is_no_room():
    moments, costs = known("plain")
    space = Subspace(moments)
    for _ in range(4):
        space.extend(np.random.default_rng(space.size).normal(size=(160, 50)))
    assert space.left.shape == (160, 160)
    assert space.right.shape == (60, 60)
    assert space.converge(costs, 3, start(moments, costs), 1e-6).total < start(moments, costs)[0]


@pytest.mark.parametrize(("wide", "kept"), [(4, 2), (3, 1), (1, 0)])
def test_a_span_too_wide_is_cut_to_that_of_its_newest_factors(wide, kept, monkeypatch):
    moments, costs = known("plain")
    space = Subspace(moments)
    for shares in ([1, 1, 1], [1, 0.1, 1], [1, 1, 30]):
        space.factor(costs, 3, start(moments, costs) * np.array(shares, float), 4)
    assert len(space.factors) == subspace.MAX_FACTORS
    taken = space.factors[0].columns.shape[1]
    assert space.size <= 3 * taken
    assert space.narrowed() is space
    space.extend(np.random.default_rng(0).normal(size=(160, 2 * taken)))
    monkeypatch.setattr(subspace, "WIDEST", 1.0)
    monkeypatch.setattr(subspace, "MAX_WIDTH_RATIO", wide)
    narrow = space.narrowed()
    assert narrow.size <= wide * taken / 2
    # By identity: a factor has arrays.
    assert [*map(id, narrow.factors)] == [*map(id, space.factors[2 - kept :])]
    for factor in narrow.factors:
        inside = narrow.left @ (narrow.left.T @ factor.columns)
        np.testing.assert_allclose(inside, factor.columns, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.sampled_from(KINDS), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
def test_no_step_outside_wins_more_than_is_said(seed, kind, more_preserve, more_weight):
    """With the right factor held, the majorant's minimum has a left factor that is known."""
    moments, costs = known(kind, seed)
    space = Subspace(moments)
    space.factor(costs, 3, start(moments, costs), 4)
    others = costs * 10 ** np.array([0.0, more_preserve, more_weight])
    inner = space.converge(others, 3, start(moments, others), 1e-9)
    a, b, _ = ridge_of(moments, others, inner.terms)
    _, condition = space.factors[0].ridge.bounds(a, b)
    gain = space.outside_gain(inner, others)
    if gain is None:
        assert condition > subspace.SAME_CONDITION
        return
    h = moments.forget + a * moments.preserve + b * np.eye(len(moments.forget))
    change = space.expand(inner)
    missed = moments.cross @ change.right - h @ change.left
    fall = np.vdot(missed, np.linalg.solve(h, missed)) * others[0] ** 2 / (2 * inner.terms[0])
    rounding = 1e-9 * inner.total
    assert fall <= gain.excess * (1 + 1e-6) + rounding
    # And not wildly more: by the condition that the factor leaves.
    assert gain.excess <= fall * condition * (1 + 1e-6) + rounding


def excess(problem, grid, common):
    """Of each setting's loss over that of its own `solve`, relative to it."""
    together = solve_all(lambda *_: problem, grid.settings(), common)
    assert [one.setting for one in together] == grid.settings()
    alone = (solve(problem, one.setting.config(common), bounded=False) for one in together)
    return [
        (float(ours.terms.sum()) - theirs.history[-1]["total"]) / theirs.history[0]["total"]
        for ours, theirs in zip(together, alone, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_after_one_find_what_they_find_alone(kind, factors):
    grid = Grid(("near",), (0,), (0.5, 1.3, 3.0), (0.0, 0.3, 1.0, 3.0), (0.0, 1.0), (0.01,), (1, 3))
    assert max(excess({NAME: linear(1, SHAPE, kind)}, grid, published())) <= 2e-6


def test_neighbours_need_no_factor_of_their_own(factors):
    near = tuple(np.linspace(1.0, 1.5, 20))
    grid = Grid(("near",), (0,), (1.3,), near, (1.0,), (0.01,), (3,))
    problem = {NAME: linear(1, SHAPE)}
    solve_all(lambda *_: problem, grid.settings(), published())
    assert len(factors) <= 3


@pytest.mark.parametrize("starts", [1, 3])
def test_a_direction_that_only_other_settings_want_is_found(starts, factors):
    """Thirty alike that overlap with what is kept, and a lesser one that does not."""
    m, k = 100, 60
    forget, residual, preserve = np.eye(m + 1, m), np.zeros((m + 1, k)), np.eye(m)
    residual[range(30), range(30)], residual[30, 30], residual[m] = 1.0, 0.9, 0.15
    preserve[30, 30] = 0.0
    rows = (x.astype(np.float32) for x in (forget, residual, preserve))
    problem = {NAME: LinearProblem(*rows, m + 1.0, float(m))}
    grid = Grid(("near",), (0,), (1.0,), (0.01, 0.03, 0.1, 0.4, 1.0), (0.02,), (0.01,), (1,))
    assert max(excess(problem, grid, published(starts=starts))) <= 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from(KINDS))
def test_the_loss_never_rises(seed, kind):
    moments, costs = known(kind, seed)
    space = Subspace(moments)
    for weights in itertools.product((0.3, 3.0), (0.1, 1.0, 10.0)):
        others = costs * np.array([1.0, *weights])
        before = start(moments, others)
        steps = itertools.islice(recycled(space, others, 3, before, 1e-6), 50)
        assert never_rises([step.total + before[0] for step in steps], 1e-7)


def test_a_span_is_of_one_problem_and_cut_when_it_has_grown_too_wide(factors, monkeypatch):
    problem, spaces = with_moments({NAME: linear(0, SHAPE)}), {}
    config = published(rank=3)
    first = solve(problem, config, spaces=spaces)
    kept, before = spaces[NAME], len(factors)
    again = solve(problem, config, spaces=spaces)
    assert spaces[NAME] is kept
    assert len(factors) == before
    assert again.history[-1]["total"] == pytest.approx(first.history[-1]["total"], rel=1e-6)
    kept.extend(np.random.default_rng(0).normal(size=(SHAPE[0], 20)))
    monkeypatch.setattr(subspace, "WIDEST", (kept.size - 1) / SHAPE[0])
    solve(problem, config, spaces=spaces)
    assert spaces[NAME].size < kept.size
    assert len(factors) == before
    other = with_moments({NAME: linear(1, SHAPE)})
    found = solve(other, config, spaces=spaces).history[-1]["total"]
    assert found == pytest.approx(solve(other, config).history[-1]["total"], rel=2e-6)


def test_small_problems_are_solved_alone():
    problem, spaces = {NAME: linear(0, SHAPE)}, {}
    config = published(rank=2)
    assert len(problem[NAME].forget[0]) < subspace.FACTORED
    kept = solve(problem, config, spaces=spaces)
    assert spaces == {}
    assert kept.history == solve(problem, replace(config), spaces=None).history
