"""Small problems that share their rows to preserve, against the closed form of each alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unlearn.features.gram import gram
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.closed_form.few_rows import ToForget, groups, solve_each
from jax_unlearn.solvers.closed_form.solve import solve
from tests.problems import published
from tests.solvers.test_solve import NAME, configs, float64_loss, linear, loss_of

SHAPES = [(12, 7, 5, 40), (40, 6, 9, 12), (10, 25, 4, 30), (16, 8, 1, 1)]
KINDS = ("plain", "rank-deficient", "common mean", "low-rank target", "nearly fits", "one step")


def each(parts, config):
    rows = [ToForget(np.asarray(one.forget), np.asarray(one.residual)) for one in parts]
    preserve = np.asarray(parts[0].preserve)
    return solve_each(rows, gram(preserve), float(len(preserve)), config)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.sampled_from(SHAPES), st.sampled_from(KINDS), configs)
def test_the_loss_is_that_of_each_solved_alone(seed, shape, kind, config):
    config = replace(config, lambda_weight=max(config.lambda_weight, 0.1))
    first = linear(seed, shape, kind)
    parts = [first, replace(linear(seed + 100, shape, kind), preserve=first.preserve)]
    for part, (b, a) in zip(parts, each(parts, config), strict=True):
        whole = loss_of(solve({NAME: part}, config), part, config)
        assert b.shape[1] <= min(config.rank, *part.shape)
        nothing = float64_loss(np.zeros(part.shape), part, config)
        assert float64_loss(b @ a, part, config) == pytest.approx(
            whole, rel=2e-5, abs=1e-6 * nothing
        )


def test_a_step_that_all_rows_share_takes_one_column_and_no_change_none():
    config = published(rank=3, lambda_weight=0.1)
    part = linear(0, (12, 7, 5, 40), "one step")
    nothing = replace(part, residual=0 * part.residual)
    (b, a), (no_b, no_a) = each([part, nothing], config)
    assert (b.shape, a.shape) == ((7, 1), (1, 12))
    assert (no_b.shape, no_a.shape) == ((7, 0), (0, 12))


def test_groups_keep_the_order_and_rows_must_be_finite():
    part = linear(0, (3, 2, 3000, 4))
    parts = [ToForget(part.forget + i, part.residual) for i in range(5)]
    assert [len(one) for one in groups(parts)] == [2, 2, 1]
    assert [one.rows[0, 0] for group in groups(parts) for one in group] == [
        one.rows[0, 0] for one in parts
    ]
    with pytest.raises(UserError, match="not finite"):
        each([replace(part, residual=part.residual * np.inf)], published(rank=1))
