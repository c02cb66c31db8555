"""FrozenLinear: the original weight and bias of an adaptable Linear, with its full name."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class FrozenLinear:
    """Weight [E, D_in] and bias [E] of a Linear, float32 in torch's layout, with its full name.

    The arrays are row-major, as in a file, because the rounding of a product depends on the order.
    """

    name: str
    weight: Float[np.ndarray, "e d_in"]
    bias: Float[np.ndarray, " e"]

    @property
    def projector(self) -> str:
        """Name of the Merger, or of CLIP's projection, that the Linear belongs to."""
        return projector_name(self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D_in)."""
        return self.weight.shape[0], self.weight.shape[1]

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original outputs for rows of the Linear's input."""
        return x @ self.weight.T + self.bias


def projector_name(linear: str) -> str:
    """`merger` for `merger.linear_fc2`; a CLIP projection is one Linear and has its name."""
    return linear.rpartition(".")[0] or linear


def by_projector(linears: Iterable[FrozenLinear]) -> dict[str, list[FrozenLinear]]:
    """The Linears of each Merger or projection, in the given order."""
    found: dict[str, list[FrozenLinear]] = {}
    for linear in linears:
        found.setdefault(linear.projector, []).append(linear)
    return found
