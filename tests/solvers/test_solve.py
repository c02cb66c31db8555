"""The closed form against Adam, analytic optima, duality, and itself in other coordinates."""

from dataclasses import replace
from functools import partial
from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.adam.loop import run_chunk, start, train
from jax_unlearn.solvers.closed_form.moments import reduce
from jax_unlearn.solvers.closed_form.ridge import Change, stepwise, until_converged
from jax_unlearn.solvers.closed_form.solve import costs_of, solve
from jax_unlearn.solvers.closed_form.subspace import refined
from tests.objective import test_merger
from tests.problems import published

NAME = "merger.linear_fc2"
# (D_in, E, n_f, n_p): many rows; fewer than D_in; fewer than E; n_p < D_in < n_f.
SHAPES = [(12, 7, 30, 40), (40, 6, 9, 12), (10, 25, 14, 30), (16, 8, 40, 9)]
KINDS = ("plain", "rank-deficient", "common mean", "low-rank target", "nearly fits", "one step")


def linear(seed, shape=SHAPES[0], kind="plain"):
    d_in, e, n_f, n_p = shape
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(3 if kind == "rank-deficient" else d_in, d_in))
    forget, preserve = (random.normal(size=(n, len(mixing))) @ mixing for n in (n_f, n_p))
    if kind == "common mean":
        forget, preserve = forget + 30, preserve + 30
    residual = random.normal(size=(n_f, e))
    if kind in ("low-rank target", "nearly fits"):
        delta = random.normal(size=(d_in, 2)) @ random.normal(size=(2, e))
        residual = forget @ delta + (0.01 * residual if kind == "nearly fits" else 0)
    if kind == "one step":
        # As of the targets that move all rows alike: of rank one, to the last digit.
        residual = np.repeat(residual[:1], n_f, axis=0)
    rows = (x.astype(np.float32) for x in (forget, residual, preserve))
    return LinearProblem(*rows, float(n_f), float(n_p))


def float64_loss(delta, part, config):
    """The loss of Δ [E, D_in] by plain NumPy in float64."""
    x_f, r, x_p = (np.asarray(x, np.float64) for x in (part.forget, part.residual, part.preserve))
    scale = 1.0 if config.alpha is None else config.alpha / config.rank
    sizes = [np.linalg.norm(x) for x in (r - x_f @ delta.T, x_p @ delta.T, delta / scale)]
    if config.reduction == "mean":
        sizes[0] /= part.forget_rows**0.5
        sizes[1] /= part.preserve_rows**0.5
    return np.dot(sizes, [config.lambda_forget, config.lambda_preserve, config.lambda_weight])


def delta_of(adapter, name=NAME):
    pair = adapter.pairs[name]
    return adapter.scale * np.asarray(pair.b, np.float64) @ np.asarray(pair.a, np.float64)


def loss_of(result, part, config):
    return float64_loss(delta_of(result.adapter), part, config)


decades = st.floats(-1, 1).map(lambda x: 10**x)
lambdas = st.one_of(st.just(0.0), decades)
configs = st.builds(
    published,
    rank=st.sampled_from([1, 2, 6]),
    alpha=st.sampled_from([None, 1.0, 7.0]),
    lambda_forget=decades.map(lambda x: 3 * x),
    lambda_preserve=lambdas,
    lambda_weight=lambdas,
    reduction=st.sampled_from(["sum", "mean"]),
)
parts = st.builds(linear, st.integers(0, 99), st.sampled_from(SHAPES), st.sampled_from(KINDS))


def never_rises(totals, rounding):
    return all(after <= before * (1 + rounding) for before, after in pairwise(totals))


def moments(part, config):
    """(Moments, costs, the terms of no change)."""
    costs = costs_of(part, config)
    reduced = reduce(part)
    return reduced.moments, costs, costs[0] * reduced.moments.square**0.5 * np.ones(3)


@settings(max_examples=100, deadline=None)
@given(parts, configs)
def test_the_loss_is_the_adapters_and_not_below_the_bound(part, config):
    result = solve({NAME: part}, config)
    totals = [row["total"] for row in result.history]
    assert totals[0] == pytest.approx(float64_loss(np.zeros(part.shape), part, config), rel=1e-9)
    assert [row["epoch"] for row in result.history] == list(range(len(totals)))
    assert result.epoch == len(totals) - 1
    # The adapter is float32, and what it fits or preserves is not exact.
    found, rounding = loss_of(result, part, config), 1e-5 * totals[0]
    assert found == pytest.approx(totals[-1], rel=1e-5, abs=rounding)
    assert 0 <= result.lower_bound <= min(totals[-1], found * (1 + 1e-9))


@settings(max_examples=50, deadline=None)
@given(parts, configs)
def test_a_majorants_minimum_is_never_higher(part, config):
    """The plain step and the one carried on, each by itself, without the guard.

    With a weight term: without one, the ridge that makes up for it is not in the loss. And up to
    the step whose preserve term falls to the rounding of its Gram matrix, where it is computed as
    zero: what comes then is rounded too, and the guard ends the loop.
    """

    def exact(steps):
        for step in steps:
            yield step.total + terms[0]
            if config.lambda_preserve and not step.terms[1]:
                return

    config = replace(config, lambda_weight=max(config.lambda_weight, 0.1))
    known, costs, terms = moments(part, config)
    for steps in (
        stepwise(known, costs, config.rank, terms),
        refined(known, costs, config.rank, terms, 1e-6),
    ):
        assert never_rises(islice(exact(steps), 6), 1e-6)


def test_an_iteration_that_is_not_better_is_not_taken_and_ends_the_loop():
    def change(total):
        return Change(np.zeros((2, 1)), np.zeros((2, 1)), np.array([total, 0.0, 0.0]))

    def totals(*given, tolerance=1e-3):
        return [one.total for one in until_converged(map(change, given), tolerance)]

    assert totals(3.0, 2.0, 2.5, 1.0) == [3.0, 2.0]
    assert totals(3.0, 2.0, 2.0, 1.0) == [3.0, 2.0]
    assert totals(3.0, 2.0, np.nan, 1.0) == [3.0, 2.0]
    assert totals(3.0, 2.0, 1.999, 1.0) == [3.0, 2.0, 1.999]
    assert totals(3.0, 0.0, -1.0, tolerance=0.0) == [3.0, 0.0]


# (shape, kinds, rank, alpha, reduction): few, for each compiles Adam anew.
GROUPS = [
    (SHAPES[0], ("plain", "nearly fits"), 2, None, "sum"),
    (SHAPES[0], ("rank-deficient", "low-rank target"), 3, 1.0, "mean"),
    (SHAPES[1], ("plain", "common mean"), 1, None, "mean"),
    (SHAPES[2], ("plain", "rank-deficient"), 5, 2.0, "sum"),
    (SHAPES[3], ("plain", "low-rank target"), 3, 7.0, "sum"),
]


def adam_in_float64(part, config):
    """The adapter of the lowest loss in the loop of `train`, on the rows as they are."""
    with jax.enable_x64(True):
        wide = partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
        problem, weights = {NAME: wide(part)}, config.loss_weights()
        state, _ = start(wide(config.init({NAME: part})), problem, weights)
        state, _ = run_chunk(state, problem, weights, config.learning_rate, length=config.epochs)
        assert state.best.pairs[NAME].b.dtype == np.float64
        return jax.tree.map(np.asarray, state.best)


# The others of the same kind are behind `slow`.
SOME = [pytest.param(g, marks=[pytest.mark.slow] if i > 1 else []) for i, g in enumerate(GROUPS)]


@pytest.mark.parametrize("group", SOME, ids=range(len(GROUPS)))
def test_it_is_as_low_as_five_thousand_epochs_of_adam(group):
    shape, kinds, rank, alpha, reduction = group
    for seed in range(10):
        part = linear(seed, shape, kinds[seed % 2])
        lambdas = 10 ** np.random.default_rng(seed).uniform(-1, 1, size=3) * [3, 1, 0.3]
        names = ("lambda_forget", "lambda_preserve", "lambda_weight")
        config = published(
            rank=rank,
            alpha=alpha,
            reduction=reduction,
            epochs=5000,
            **dict(zip(names, map(float, lambdas), strict=True)),
        )
        adam = float64_loss(delta_of(adam_in_float64(part, config)), part, config)
        assert loss_of(solve({NAME: part}, config), part, config) <= adam * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.one_of(st.floats(0.05, 1.6), st.floats(2.4, 10.0)),
    st.sampled_from(["sum", "mean"]),
)
def test_without_a_preserve_term_it_is_the_ridge_regression_of_the_secular_equation(
    seed, share, reduction
):
    """At full rank Δᵀ(μ) = (XᵀX + μ)⁻¹ XᵀR with μ ‖Δ‖ c_f = c_w ‖R − X Δᵀ‖, or no change."""
    part = linear(seed, (8, 5, 30, 10))
    x, r = (np.asarray(rows, np.float64) for rows in (part.forget, part.residual))
    c_f = 2 / (30**0.5 if reduction == "mean" else 1)
    # From a share of 2 on, no change is best.
    c_w = c_f * share * np.linalg.norm(x.T @ r) / np.linalg.norm(r) / 2

    def delta(mu):
        return np.linalg.solve(x.T @ x + mu * np.eye(8), x.T @ r)

    def secular(log_mu):
        mu = np.exp(log_mu)
        ratio = mu * np.linalg.norm(delta(mu)) / np.linalg.norm(r - x @ delta(mu))
        return np.log(ratio * c_f / c_w)

    best = np.zeros((8, 5))
    if share < 2:
        best = delta(np.exp(brentq(secular, -30, 30, xtol=1e-14)))
    config = published(
        rank=5,
        alpha=10.0,
        lambda_forget=2.0,
        lambda_preserve=0.0,
        lambda_weight=2 * c_w,
        reduction=reduction,
    )
    result = solve({NAME: part}, config)
    expected = float64_loss(best.T, part, config)
    assert result.history[-1]["total"] == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(
        delta_of(result.adapter), best.T, atol=1e-3 * max(np.abs(best).max(), 1e-3)
    )
    assert result.lower_bound == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"lambda_forget": 0.0},
        {"lambda_forget": 0.0, "lambda_preserve": 0.0},
        {"lambda_weight": 1e4},
        {"lambda_forget": 0.0, "lambda_preserve": 0.0, "lambda_weight": 0.0},
    ],
    ids=["no forget", "weight alone", "too much weight", "nothing"],
)
def test_where_no_change_is_best_there_is_none_and_adam_can_start_from_it(changed):
    part, config = linear(0), published(rank=3, **changed)
    result = solve({NAME: part}, config)
    start = config.init({NAME: part}).pairs[NAME]
    assert result.lower_bound == pytest.approx(result.history[0]["total"], rel=1e-9)
    assert np.all(result.adapter.pairs[NAME].b == 0)
    np.testing.assert_array_equal(result.adapter.pairs[NAME].a, start.a)


def test_a_preserve_term_without_rows_or_with_zero_rows_costs_nothing():
    part = linear(0)
    config = published(rank=3, reduction="mean")
    alone = replace(config, lambda_preserve=0.0)
    expected = solve({NAME: part}, alone).history[-1]["total"]
    for preserve in (part.preserve[:0], 0 * part.preserve):
        changed = replace(part, preserve=preserve, preserve_rows=float(len(preserve)))
        assert solve({NAME: changed}, config).history[-1]["total"] == pytest.approx(expected)


def test_a_residual_of_zero_and_one_that_a_change_meets():
    part, config = linear(0, kind="low-rank target"), published(rank=2, lambda_weight=0.0)
    fits = solve({NAME: part}, replace(config, lambda_preserve=0.0))
    rounding = 1e-6 * fits.history[0]["total"]
    assert fits.history[-1]["total"] < rounding
    assert loss_of(fits, part, replace(config, lambda_preserve=0.0)) < rounding
    nothing = solve({NAME: replace(part, residual=0 * part.residual)}, config)
    assert len(nothing.history) == 1
    assert nothing.history[0]["total"] == nothing.lower_bound == 0


@settings(max_examples=30, deadline=None)
@given(parts, configs)
def test_the_bound_is_below_any_change(part, config):
    """Ridge regressions of full rank, which are not of the adapter's rank, and near the best."""
    bound = solve({NAME: part}, config).lower_bound
    x_f, r, x_p = (np.asarray(x, np.float64) for x in (part.forget, part.residual, part.preserve))
    for a in 10.0 ** np.arange(-3, 4):
        for b in 10.0 ** np.arange(-5, 5):
            h = x_f.T @ x_f + a * x_p.T @ x_p + b * np.eye(x_f.shape[1])
            assert bound <= float64_loss(np.linalg.solve(h, x_f.T @ r).T, part, config) * (1 + 1e-9)


@pytest.mark.parametrize("sampled", [False, True], ids=["all columns", "sampled"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_close(kind, reduction, sampled, monkeypatch):
    """To the best of full rank, which a long plain iteration finds."""
    part = linear(1, (30, 80, 200, 300), kind)
    config = published(rank=2, lambda_forget=10.0, reduction=reduction)
    known, costs, terms = moments(part, config)
    steps = islice(stepwise(known, costs, 80, terms), 2000)
    *_, best = until_converged(steps, 1e-12)
    if sampled:
        monkeypatch.setattr("jax_unlearn.solvers.closed_form.lower_bound.PLAIN", 0)
    bound = solve({NAME: part}, config).lower_bound
    assert bound <= best.total * (1 + 1e-7)
    assert bound >= best.total * (1 - (5e-3 if sampled else 2e-4))


def test_without_the_bound_the_adapter_is_the_same():
    problem, config = {NAME: linear(0)}, published(rank=2)
    whole, bare = (solve(problem, config, bounded=b) for b in (True, False))
    assert whole.lower_bound is not None
    assert bare.lower_bound is None
    np.testing.assert_array_equal(delta_of(bare.adapter), delta_of(whole.adapter))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from(KINDS), configs)
def test_fewer_rows_than_columns_are_the_same_problem_with_rows_of_zeros(seed, kind, config):
    part = linear(seed, (40, 12, 9, 14), kind)
    zeros = {name: np.zeros((60, x.shape[1]), np.float32) for name, x in rows_of(part).items()}
    padded = replace(
        part, **{name: np.concatenate([x, zeros[name]]) for name, x in rows_of(part).items()}
    )
    assert reduce(part).moments.cross.shape == (23, 9)
    assert reduce(padded).moments.cross.shape == (40, 12)
    narrow, wide = (solve({NAME: one}, config) for one in (part, padded))
    start = narrow.history[0]["total"]
    # Without a weight term the loss can be zero; the iterations then end at 2e-7 of the start.
    assert narrow.history[-1]["total"] == pytest.approx(
        wide.history[-1]["total"], rel=1e-6, abs=1e-6 * start
    )
    assert loss_of(narrow, part, config) == pytest.approx(
        loss_of(wide, part, config), rel=1e-5, abs=1e-6 * start
    )


def rows_of(part):
    return {name: getattr(part, name) for name in ("forget", "residual", "preserve")}


def test_lanczos_method_finds_the_same(monkeypatch):
    part = linear(3, (24, 300, 400, 100))
    config = published(rank=4)
    few = solve({NAME: part}, config)
    monkeypatch.setattr("jax_unlearn.solvers.closed_form.ridge.LANCZOS", 1000)
    assert few.history[-1]["total"] == pytest.approx(
        solve({NAME: part}, config).history[-1]["total"], rel=1e-12
    )


@pytest.mark.parametrize("alpha", [None, 2.0, -2.0])
def test_factors_are_balanced_and_adam_goes_on_from_them(alpha):
    part, config = linear(0), published(rank=3, alpha=alpha, epochs=20, learning_rate=1e-5)
    result = solve({NAME: part}, config)
    pair = result.adapter.pairs[NAME]
    assert (pair.a.dtype, pair.b.dtype) == (np.float32, np.float32)
    assert (pair.a.shape, pair.b.shape) == ((3, 12), (7, 3))
    np.testing.assert_allclose(pair.a @ pair.a.T, pair.b.T @ pair.b, atol=1e-6)
    further = train({NAME: part}, config, init=result.adapter)
    assert further.history[0]["total"] == pytest.approx(result.history[-1]["total"], rel=1e-5)
    assert further.history[-1]["total"] == pytest.approx(result.history[-1]["total"], rel=1e-3)


def test_a_change_of_less_than_the_rank_leaves_rows_of_the_init_in_a():
    part, config = linear(0, kind="low-rank target"), published(rank=5, lambda_weight=0.01)
    pair = solve({NAME: part}, config).adapter.pairs[NAME]
    start = config.init({NAME: part}).pairs[NAME]
    assert np.all(pair.b[:, 2:] == 0)
    assert np.abs(pair.b[:, :2]).max(axis=0).min() > 0
    np.testing.assert_array_equal(pair.a[2:], start.a[2:])


def test_paths_are_independent_and_history_and_progress_add_them_up():
    one, two = linear(1), linear(2, SHAPES[1])
    config, told = published(rank=2), []
    both = solve({"one": one, "two": two}, config, progress=lambda *row: told.append(row))
    alone = [solve({name: part}, config) for name, part in (("one", one), ("two", two))]
    for term in ("forget", "preserve", "weight", "total"):
        for row in (0, -1):
            expected = sum(result.history[row][term] for result in alone)
            assert both.history[row][term] == pytest.approx(expected, rel=1e-12)
    assert len(both.history) == max(len(result.history) for result in alone)
    assert both.lower_bound == pytest.approx(sum(result.lower_bound for result in alone))
    assert [number for number, _ in told] == list(range(1, len(told) + 1))
    assert len(told) == sum(len(result.history) - 1 for result in alone)
    assert told[-1][1]["total"] == pytest.approx(both.history[-1]["total"], rel=1e-12)


def test_held_out_rows_choose_the_iteration():
    """A target of noise: to fit it is to lose on other rows."""
    full, config = linear(4, (20, 6, 60, 20)), published(rank=5, select="held_out")
    config = replace(config, lambda_preserve=0.0, lambda_weight=0.0)
    some = np.arange(60) < 21
    fit, held_out = (
        replace(full, forget=full.forget[rows], residual=full.residual[rows])
        for rows in (some, ~some)
    )
    result = solve({NAME: fit}, config, held_out={NAME: held_out})
    assert result.epoch == 0
    assert np.all(result.adapter.pairs[NAME].b == 0)
    assert len(result.history) > 1
    same = solve({NAME: fit}, config, held_out={NAME: fit})
    assert same.epoch == len(same.history) - 1
    with pytest.raises(UserError, match="held-out"):
        solve({NAME: fit}, config)


def test_more_starts_may_find_less():
    """Where the first one comes to rest too early: forgetting costs little, and can be exact."""
    part = linear(14, SHAPES[1], "low-rank target")
    config = published(rank=4, lambda_forget=0.33, lambda_preserve=25.0, lambda_weight=0.036)
    one, many = (solve({NAME: part}, replace(config, starts=n)) for n in (1, 4))
    assert many.history[-1]["total"] < 0.997 * one.history[-1]["total"]
    assert loss_of(many, part, config) < 0.997 * loss_of(one, part, config)


def test_one_iteration_is_one_row_and_none_is_no_change():
    for iterations in (0, 1):
        result = solve({NAME: linear(0)}, published(rank=2, iterations=iterations))
        assert len(result.history) == iterations + 1


def test_same_seed_same_bytes():
    part, config = linear(0, (24, 300, 400, 100)), published(rank=3, starts=2)
    first, second = (solve({NAME: part}, config) for _ in range(2))
    assert first.history == second.history
    assert first.lower_bound == second.lower_bound
    for one, other in zip(
        jax.tree.leaves(first.adapter), jax.tree.leaves(second.adapter), strict=True
    ):
        assert one.tobytes() == other.tobytes()


def test_jax_arrays_do_as_well():
    part, config = linear(0), published(rank=2)
    arrays = {name: jnp.asarray(x) for name, x in rows_of(part).items()}
    counts = {name: jnp.asarray(getattr(part, name)) for name in ("forget_rows", "preserve_rows")}
    other = solve({NAME: replace(part, **arrays, **counts)}, config)
    assert other.history == solve({NAME: part}, config).history


@pytest.mark.parametrize("name", ["forget", "residual", "preserve"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(name, value):
    part = linear(0)
    getattr(part, name)[3, 2] = value
    with pytest.raises(UserError, match="not finite at the start"):
        solve({NAME: part}, published(rank=3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 8}, "--rank 8"),
        ({"alpha": 0.0}, "--alpha 0"),
        ({"starts": 0}, "--starts 0"),
        ({"iterations": -1}, "--iterations -1"),
        ({"tolerance": -1.0}, "--tolerance -1.0"),
        ({"lambda_forget": -1.0}, "--lambda-forget -1.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        solve({NAME: linear(0)}, published(**{"rank": 3, **changed}))


def test_a_merger_whose_linear_fc1_is_adapted_is_refused():
    problem = test_merger.Case("images").problem(test_merger.BOTH)
    with pytest.raises(UserError, match=r"linear_fc2.*--optimizer adam") as error:
        solve(problem, published(rank=3))
    assert "\n" not in str(error.value)
