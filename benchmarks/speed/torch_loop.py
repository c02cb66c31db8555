"""The published training loop in PyTorch, which the speed of ours is measured against.

Adam on A and B of one Linear. Every step computes the Linear's outputs anew and takes the cached
original ones off them. Written here for the benchmarks, after the loss of DESIGN.md.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import linear

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.loss import LossWeights

WEIGHTS = LossWeights()
Loss = Callable[[Tensor, Tensor], Tensor]


class Rows(NamedTuple):
    """Constants of the loss: the Linear, both sides' rows, target and original outputs."""

    weight: Float[Tensor, "e d_in"]
    bias: Float[Tensor, " e"]
    forget: Float[Tensor, "n_f d_in"]
    target: Float[Tensor, "n_f e"]
    preserve: Float[Tensor, "n_p d_in"]
    original: Float[Tensor, "n_p e"]

    @classmethod
    def of(cls, *arrays: np.ndarray) -> "Rows":
        """From weight, bias, forget, target and preserve, whose memory they share on a CPU."""
        weight, bias, forget, target, preserve = (torch.from_numpy(x).to(device()) for x in arrays)
        return cls(weight, bias, forget, target, preserve, linear(preserve, weight, bias))


def loss(rows: Rows, scale: float, a: Tensor, b: Tensor) -> Tensor:
    """The three-term loss as published."""

    def output(x: Tensor) -> Tensor:
        return linear(x, rows.weight, rows.bias) + (scale * (x @ a.T)) @ b.T

    missed = rows.target - output(rows.forget)
    moved = output(rows.preserve) - rows.original
    return three_terms(missed, moved, a, b)


def loss_once(rows: Rows, residual: Tensor, scale: float, a: Tensor, b: Tensor) -> Tensor:
    """The same without W, from R = T − X_f Wᵀ − b: what our loss does, in PyTorch."""

    def change(x: Tensor) -> Tensor:
        return (scale * (x @ a.T)) @ b.T

    return three_terms(residual - change(rows.forget), change(rows.preserve), a, b)


def three_terms(missed: Tensor, moved: Tensor, a: Tensor, b: Tensor) -> Tensor:
    forget, preserve = WEIGHTS.forget * norm(missed), WEIGHTS.preserve * norm(moved)
    return forget + preserve + WEIGHTS.weight * norm(b @ a)


def norm(x: Tensor) -> Tensor:
    """Frobenius, by way of the rows' norms.

    Of all entries at once, PyTorch on a CPU sums the squares in float32 one after the other: of
    92 million normal ones it loses 1 %, and training goes elsewhere. This takes no longer.
    """
    return vector_norm(vector_norm(x, dim=1))


def device() -> str:
    """Where JAX computes too."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def published(rows: Rows, scale: float) -> Loss:
    return partial(loss, rows, scale)


def once(rows: Rows, scale: float) -> Loss:
    residual = rows.target - linear(rows.forget, rows.weight, rows.bias)
    return partial(loss_once, rows, residual, scale)


class Loop:
    """Adam on one pair from where ours starts.

    Args:
        of: the loss of A and B.
        init: an adapter of one pair.
    """

    def __init__(self, of: Loss, init: LoraAdapter, learning_rate: float) -> None:
        self.of, self.init, self.learning_rate = of, init, learning_rate
        self.begin()

    def begin(self) -> None:
        (pair,) = self.init.pairs.values()
        self.a, self.b = (
            torch.tensor(np.asarray(x), device=device(), requires_grad=True)
            for x in (pair.a, pair.b)
        )
        self.adam = torch.optim.Adam([self.a, self.b], lr=self.learning_rate)

    def step(self) -> float:
        """One epoch; the loss before it."""
        self.adam.zero_grad()
        total = self.of(self.a, self.b)
        total.backward()
        self.adam.step()
        return total.item()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def adapter(self) -> LoraAdapter:
        """A copy of the pair as it is now."""
        (name,) = self.init.pairs
        pair = LoraPair(*(x.detach().cpu().numpy().copy() for x in (self.a, self.b)))
        return replace(self.init, pairs={name: pair})
