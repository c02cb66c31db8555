"""Result: a fitted adapter and its history."""

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
    """The chosen adapter and how it was found.

    Attributes:
        adapter: the chosen adapter.
        history: {epoch, forget, preserve, weight, total} after each step; row 0 is the start, the
            last row the final adapter.
        epoch: the row of the history that `adapter` belongs to.
        stopped: why training ended early, or None.
        seconds: `total` and its parts: for `train` the first chunk with its compilation, and a
            later chunk (median; 0 without one); for `solve` the moments of the rows, the iterations
            and the lower bound.
        lower_bound: lower bound of the loss over adapters of any rank; None if not computed.
    """

    adapter: LoraAdapter
    history: list[Row]
    epoch: int
    stopped: str | None
    seconds: dict[str, float]
    lower_bound: float | None = None


def history_of(terms: Float[np.ndarray, "n terms"], first: int) -> list[Row]:
    """Rows of a history from the terms of consecutive epochs, starting with epoch `first`."""
    return [
        {
            "epoch": first + i,
            **dict(zip(TERMS, map(float, row), strict=True)),
            "total": float(row.sum()),
        }
        for i, row in enumerate(terms)
    ]
