"""How far each request is moved: further than its target where a probe still names it."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

# Each trial moves by this factor further, up to the largest.
STEP, MOST = 1.25, 4.0
Fitted = TypeVar("Fitted")


def search(
    count: int,
    fit: Callable[[Sequence[float]], Fitted],
    named: Callable[[Fitted], Sequence[int]],
) -> tuple[Fitted, list[float]]:
    """Raise the strengths of all requests that are named, together, until none is.

    Because they are raised together, the result does not depend on the order of the requests. One
    that is named at the largest strength too has the least at which the fewest images were named;
    what is named after that last fit is not looked at again. Each request is raised at most
    log(MOST) / log(STEP) times, seven here, which bounds the number of fits.

    Args:
        count: number of requests.
        fit: fits all requests with these strengths.
        named: for each request, the number of its images that are still named after such a fit.

    Returns:
        The last fit, and its strengths.
    """
    strengths = [1.0] * count
    fewest = [(math.inf, 1.0)] * count
    while True:
        fitted = fit(strengths)
        left = named(fitted)
        tried = [*zip(left, strengths, strict=True)]
        fewest = [min(*both) for both in zip(fewest, tried, strict=True)]
        raised = [min(MOST, STEP * strength) if images else strength for images, strength in tried]
        if raised == strengths:
            break
        strengths = raised
    chosen = [
        best if images else strength
        for (images, strength), (_, best) in zip(tried, fewest, strict=True)
    ]
    return (fitted if chosen == strengths else fit(chosen)), chosen
