"""One check of settings and rows for both solvers and the command line."""

import json

import numpy as np
import pytest

from jax_unlearn.objective.linear import linear_problem
from jax_unlearn.runs.settings.checks import check_values
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import SolverConfig
from tests import problems, warm

FIT = {"train": train, "solve": solve}
WRONG = [
    ("reduction", "avg", "must be one of sum, mean"),
    ("select", "bset", "must be one of best, last, held_out"),
    ("alpha", 0.0, "must be finite, and not zero"),
    ("alpha", float("inf"), "must be finite, and not zero"),
    ("rank", 2.5, "must be a whole number"),
    ("rank", 0, "must be at least 1"),
    ("rank", True, "must be a whole number"),
    ("seed", 2**40, "must be at most 2147483647"),
    ("lambda_forget", float("nan"), "must be finite and at least 0"),
    ("lambda_preserve", float("inf"), "must be finite and at least 0"),
    ("learning_rate", 0.0, "must be finite and above 0"),
    ("tolerance", -1.0, "must be finite and at least 0"),
    ("epochs", -1, "must be at least 0"),
    ("starts", "many", "must be a whole number"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_values_that_cannot_be_meant_are_refused_everywhere(name, value, message, tmp_path):
    config = SolverConfig(rank=2, epochs=1)
    run = RunConfig.of(checkpoint=tmp_path, out=tmp_path)
    # Not by the constructor, whose types the tests check and a user's program does not.
    for settings in (config, run.solver):
        object.__setattr__(settings, name, value)
    for fit in FIT.values():
        with pytest.raises(UserError, match=message) as caught:
            fit(problems.problem(), config)
        assert str(caught.value).startswith(f"--{name.replace('_', '-')} ")
    with pytest.raises(UserError, match=message):
        check_values(run)


@pytest.mark.parametrize("fit", FIT)
def test_without_rows_to_forget_there_is_nothing_to_fit(fit):
    with pytest.raises(UserError, match="there are no rows to forget"):
        FIT[fit](problems.problem(n_forget=0), SolverConfig(rank=2, epochs=1))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_without_rows_to_keep_both_solvers_agree(reduction):
    weight, bias, forget, target, _ = problems.arrays(n_forget=6)
    none = np.zeros((0, problems.D_IN), np.float32)
    problem = {"merger.linear_fc2": linear_problem(weight, bias, forget, target, none)}
    config = SolverConfig(rank=3, epochs=4000, reduction=reduction, lambda_weight=0.1)
    ours, theirs = (fit(problem, config).history[-1] for fit in (solve, train))
    assert ours["preserve"] == theirs["preserve"] == 0
    assert ours["total"] == pytest.approx(theirs["total"], rel=1e-2)


DRAWS = """
import json, sys, jax, numpy as np
jax.config.update("jax_enable_x64", sys.argv[1] == "64")
from jax_unlearn.solvers.config import SolverConfig
from tests import problems
pair = SolverConfig(rank=2).init(problems.problem()).pairs["merger.linear_fc2"]
print(json.dumps([str(pair.a.dtype), str(pair.b.dtype), np.asarray(pair.a).tolist()]))
"""


def test_draws_do_not_depend_on_the_default_type():
    one, other = (json.loads(warm.run(["-c", DRAWS, bits]).stdout) for bits in ("32", "64"))
    assert one == other
    assert one[:2] == ["float32", "float32"]
