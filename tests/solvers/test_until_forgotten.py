"""λ_f is raised until the forget norm has fallen; a rise is no fall unless one asks for that."""

import jax
import numpy as np
import pytest

from jax_unlearn.solvers.until_forgotten import STEP, search
from tests import problems
from tests.problems import published


@pytest.fixture(scope="module")
def problem():
    return problems.problem()


def config(**changes):
    return published(rank=2, epochs=30, chunk=30, **changes)


def test_one_training_where_nothing_is_asked(problem):
    found = search(problem, config())
    assert (found.trials, found.reached, found.lambda_forget) == (1, True, 1.3)


def test_it_stops_at_the_first_that_is_enough(problem):
    trials = []
    weak = config(lambda_forget=0.01)
    found = search(problem, weak, 0.02, begin=trials.append)
    assert trials == list(range(1, found.trials + 1))
    assert found.trials > 1
    assert found.reached
    assert found.fall >= 0.02
    assert found.lambda_forget == pytest.approx(0.01 + STEP * (found.trials - 1))
    before = search(problem, config(lambda_forget=found.lambda_forget - STEP))
    assert before.fall < 0.02


def test_a_rise_ends_the_published_search_only(problem, monkeypatch):
    monkeypatch.setattr("jax_unlearn.solvers.until_forgotten.MOST", 3)
    # A step that is far too long: the norm rises.
    away = config(lambda_forget=0.01, lambda_weight=0.0, learning_rate=10.0, select="last")
    assert search(problem, away, 0.5, rise_counts=True).trials == 1
    found = search(problem, away, 0.5)
    assert (found.trials, found.reached) == (3, False)
    assert found.fall < -0.5


def test_the_fall_is_of_the_unweighted_norm(problem):
    found = search(problem, config())
    rows = found.result.history
    assert found.fall == pytest.approx(1 - rows[found.result.epoch]["forget"] / rows[0]["forget"])
    assert np.isfinite(jax.tree.leaves(found.result.adapter)[0]).all()
