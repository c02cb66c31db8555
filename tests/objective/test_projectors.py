"""Which Linears a run adapts, from the names that the user gives."""

import pytest

from jax_unlearn.objective.projectors import (
    adapted_linears,
    frozen_linears,
    projectors_of,
)
from jax_unlearn.runtime.errors import UserError

MERGERS = ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")


@pytest.mark.parametrize(
    ("targets", "linears", "expected"),
    [
        (["all"], ["linear_fc2"], [f"{merger}.linear_fc2" for merger in MERGERS]),
        (["merger"], ["linear_fc2"], ["merger.linear_fc2"]),
        (["merger", "all"], ["linear_fc1"], [f"{merger}.linear_fc1" for merger in MERGERS]),
        (
            ["deepstack_merger_list.1", "merger", "merger"],
            ["linear_fc2", "linear_fc1", "linear_fc2"],
            [f"{MERGERS[i]}.{name}" for i in (0, 2) for name in ("linear_fc1", "linear_fc2")],
        ),
    ],
)
def test_names_come_in_the_towers_order_and_once(targets, linears, expected):
    assert adapted_linears(targets, linears, MERGERS) == expected


def test_only_what_is_needed_of_a_projector_is_loaded(tiny_tower):
    adapted = ["merger.linear_fc1", "deepstack_merger_list.0.linear_fc2"]
    projectors = projectors_of(frozen_linears(tiny_tower, adapted))
    assert [one.name for one in projectors] == list(MERGERS)
    assert [[linear.name for linear in one.linears] for one in projectors] == [
        ["merger.linear_fc1", "merger.linear_fc2"],
        ["deepstack_merger_list.0.linear_fc2"],
        ["deepstack_merger_list.1.linear_fc2"],
    ]
    assert [one.is_linear for one in projectors] == [False, True, True]
    assert [linear.shape for linear in projectors[0].linears] == [(128, 128), (24, 128)]


def test_a_linear_that_the_tower_does_not_have_is_named_with_those_it_has(tiny_tower):
    with pytest.raises(
        UserError, match=r"no Linear merger.linear_fc3.*merger.linear_fc1'"
    ) as error:
        frozen_linears(tiny_tower, adapted_linears(["merger"], ["linear_fc3"], MERGERS))
    assert "\n" not in str(error.value)
