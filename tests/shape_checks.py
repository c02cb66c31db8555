"""Check shapes and types in the first calls of every function in each test, and no more of them.

A solver's loop calls a function a thousand times with the same shapes, and a check takes longer
than the call. `tests/conftest.py` imports this before any module of ours, and `tests/shared.py`
begins each test.
"""

import inspect
from collections import Counter
from functools import partial, wraps
from types import CodeType
from typing import Any

import jaxtyping

CHECKED = 50
# A function inside another is made anew in each call of that one; so many of them are checked.
MADE = 3
# Of each function in this test: how often it was called, and made inside another.
calls: Counter[CodeType] = Counter()
makings: Counter[CodeType] = Counter()
every_call = jaxtyping.jaxtyped


def begin() -> None:
    """Check the first calls of every function anew."""
    calls.clear()
    makings.clear()


def first_calls(function: Any = None, *, typechecker: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`: its check, for CHECKED calls of a function in a test.

    The check is made when it is first needed: to make it takes a millisecond.
    """
    if function is None:
        return partial(first_calls, typechecker=typechecker)
    if not inspect.isfunction(function):
        return every_call(function, typechecker=typechecker)
    code, made = function.__code__, []
    if "<locals>" in function.__qualname__:
        makings[code] += 1
        if makings[code] > MADE:
            return function

    @wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        calls[code] += 1
        if calls[code] > CHECKED:
            return function(*arguments, **options)
        if not made:
            made.append(every_call(function, typechecker=typechecker))
        return made[0](*arguments, **options)

    return counted


jaxtyping.jaxtyped = first_calls
