"""FrozenLinear: an original Linear of the tower, with its full name."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class FrozenLinear:
    """Weight [E, D_in] and bias [E] in torch's layout, float32, by the full name of the Linear.

    Arrays are row-major, as in a file: the rounding of a product depends on the order.
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
        """The original outputs of rows at the Linear's input."""
        return x @ self.weight.T + self.bias


def projector_name(linear: str) -> str:
    """`merger` of `merger.linear_fc2`; CLIP's projections are one Linear and have its name."""
    return linear.rpartition(".")[0] or linear


def by_projector(linears: Iterable[FrozenLinear]) -> dict[str, list[FrozenLinear]]:
    """The Linears of each Merger or projection, in their order."""
    found: dict[str, list[FrozenLinear]] = {}
    for linear in linears:
        found.setdefault(linear.projector, []).append(linear)
    return found
