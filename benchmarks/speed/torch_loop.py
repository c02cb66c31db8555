"""The published training loop in PyTorch, and the Adam loop that every PyTorch variant runs in.

Adam on A and B of one Linear. In every step the published loss recomputes the Linear's outputs and
subtracts the cached original ones. Written for the benchmarks, after the loss in DESIGN.md. For the
same loss in fewer operations see benchmarks/speed/torch_algebra.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import linear

from benchmarks.harness import PUBLISHED
from jax_unlearn.models.lora import LoraAdapter, LoraPair

WEIGHTS = PUBLISHED.loss_weights()
RATE = PUBLISHED.learning_rate
# Returns the loss of A and B and sets their gradients.
Backward = Callable[[Tensor, Tensor], Tensor]


class Rows(NamedTuple):
    """Constants of the published loss: the Linear, both sides' rows, target, original outputs."""

    weight: Float[Tensor, "e d_in"]
    bias: Float[Tensor, " e"]
    forget: Float[Tensor, "n_f d_in"]
    target: Float[Tensor, "n_f e"]
    preserve: Float[Tensor, "n_p d_in"]
    original: Float[Tensor, "n_p e"]

    @classmethod
    def of(cls, *arrays: np.ndarray) -> "Rows":
        """Create from weight, bias, forget, target and preserve; shares their memory on a CPU."""
        weight, bias, forget, target, preserve = (torch.from_numpy(x).to(device()) for x in arrays)
        return cls(weight, bias, forget, target, preserve, linear(preserve, weight, bias))


def loss(rows: Rows, scale: float, a: Tensor, b: Tensor) -> Tensor:
    """The three-term loss as published."""

    def output(x: Tensor) -> Tensor:
        return linear(x, rows.weight, rows.bias) + (scale * (x @ a.T)) @ b.T

    forget = WEIGHTS.forget * norm(rows.target - output(rows.forget))
    preserve = WEIGHTS.preserve * norm(output(rows.preserve) - rows.original)
    return forget + preserve + WEIGHTS.weight * norm(b @ a)


def norm(x: Tensor) -> Tensor:
    """Frobenius norm, from the norms of the rows.

    Of all entries at once, PyTorch on a CPU sums the squares in float32 one after the other: of
    92 million normal ones it loses 1 %, and training goes elsewhere. This takes no longer.
    """
    return vector_norm(vector_norm(x, dim=1))


def device() -> str:
    """The torch device that corresponds to JAX's."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def published(rows: Rows, scale: float) -> Backward:
    """The published loss, with the gradient of PyTorch's autograd."""

    def backward(a: Tensor, b: Tensor) -> Tensor:
        a.grad = b.grad = None
        total = loss(rows, scale, a, b)
        total.backward()
        return total

    return backward


class Loop:
    """Adam on one pair, from the same start as JAX's.

    Args:
        backward: computes the loss and sets the gradients.
        init: initial adapter, with one pair.
        fused: fused update of Adam, the fastest form, also on a CPU; otherwise PyTorch's default,
            as in the published loop.

    Attributes:
        unit: least number of steps in a timed turn.
        threads: of PyTorch on a CPU.
        losses: of the start and of each step that was looked at or gone on from.
    """

    unit = 1
    threads = torch.get_num_threads()

    def __init__(self, backward: Backward, init: LoraAdapter, *, fused: bool) -> None:
        self.backward, self.init, self.fused = backward, init, fused

    def begin(self, learning_rate: float = RATE) -> None:
        (pair,) = self.init.pairs.values()
        self.a, self.b = (
            torch.tensor(np.asarray(x), device=device(), requires_grad=True)
            for x in (pair.a, pair.b)
        )
        fused = True if self.fused else None
        self.adam = torch.optim.Adam([self.a, self.b], lr=learning_rate, fused=fused)
        self.total: float | None = None
        self.losses: list[float] = []

    def objective(self) -> float:
        """The loss of the current adapter; the next step reuses it and its gradients."""
        if self.total is None:
            self.total = self.backward(self.a, self.b).item()
            self.losses.append(self.total)
        return self.total

    def advance(self, steps: int) -> None:
        torch.set_num_threads(self.threads)
        for _ in range(steps):
            self.objective()
            self.adam.step()
            self.total = None

    def adapter(self) -> LoraAdapter:
        """A copy of the current pair, the one of `objective`."""
        (name,) = self.init.pairs
        pair = LoraPair(*(x.detach().cpu().numpy().copy() for x in (self.a, self.b)))
        return replace(self.init, pairs={name: pair})

    def best(self) -> LoraAdapter:
        """The same, since PyTorch's objective is read after every step."""
        return self.adapter()
