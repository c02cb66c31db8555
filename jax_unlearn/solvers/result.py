"""Result: the adapter, its history, and how it came about."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import TERMS

Row = dict[str, int | float]


Progress = Callable[[int, Row], None]


@dataclass(frozen=True)
class Result:
    """The chosen adapter and how it came about.

    history: {epoch, forget, preserve, weight, total} of the adapter after that many steps; row 0
    is the start, the last row the final adapter. epoch: the row that `adapter` stands for.
    stopped: why training ended early, or None. seconds: `total` and its parts by name: of `train`
    the first chunk, with its compilation, and a later one (median, 0 if there is none); of `solve`
    the moments of the rows, the iterations and the lower bound. lower_bound: no adapter of any rank
    has a lower loss; None where that is not known.
    """

    adapter: LoraAdapter
    history: list[Row]
    epoch: int
    stopped: str | None
    seconds: dict[str, float]
    lower_bound: float | None = None


def history_of(terms: Float[np.ndarray, "n terms"], first: int) -> list[Row]:
    """Rows of a history from the terms of epochs, the first of which is `first`."""
    return [
        {
            "epoch": first + i,
            **dict(zip(TERMS, map(float, row), strict=True)),
            "total": float(row.sum()),
        }
        for i, row in enumerate(terms)
    ]
