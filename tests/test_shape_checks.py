"""Which calls of a function have their shapes checked in a test."""

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float

from tests import shape_checks
from tests.shape_checks import CHECKED, MADE, begin, first_calls

RIGHT, WRONG = np.zeros((2, 3)), np.zeros(3)


@first_calls(typechecker=beartype)
def rows(x: Float[np.ndarray, "n d"]) -> int:
    return len(x)


def made():
    """A function inside another, which is made anew."""

    def inner(x: Float[np.ndarray, "n d"]) -> int:
        return len(x)

    return first_calls(inner, typechecker=beartype)


def refused(function):
    with pytest.raises(Exception, match="Type-check error"):
        function(WRONG)


@pytest.fixture(autouse=True)
def anew():
    begin()


def test_the_first_calls_are_checked_and_those_of_the_next_test():
    refused(rows)
    for _ in range(CHECKED - 1):
        rows(RIGHT)
    assert rows(WRONG) == 3
    begin()
    refused(rows)


def test_so_are_the_first_functions_that_are_made_inside_another():
    for _ in range(MADE):
        refused(made())
    assert made()(WRONG) == 3
    begin()
    refused(made())


def test_every_test_begins_anew():
    shape_checks.calls["left"], shape_checks.makings["left"] = 1, 1
    begin()
    assert not shape_checks.calls
    assert not shape_checks.makings
