"""The three-term loss and its gradient in PyTorch, with the same algebra as our JAX code.

R = T − X_f Wᵀ − b is computed once, so that no step needs W. ‖X_p Δᵀ‖ and ‖B A‖ are computed from
r × r Gram matrices, so that R − s (X_f Aᵀ) Bᵀ is the only matrix of the size of the outputs. The
gradient is written by hand, without autograd, and thin products are stored as [r, n], which is up
to three times as fast on a CPU as [n, r].

The same functions run on rows, and on their statistics from `objective.linear.compress`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.speed.torch_loop import WEIGHTS, Backward, device, norm
from jax_unlearn.objective.linear import LinearProblem


class Constants(NamedTuple):
    """Constants of the training."""

    forget: Float[Tensor, "n_f d_in"]
    residual: Float[Tensor, "n_f e"]
    preserve: Float[Tensor, "n_p d_in"]

    @classmethod
    def of_rows(cls, *arrays: np.ndarray) -> "Constants":
        """Create from weight, bias, forget, target and preserve."""
        weight, bias, forget, target, preserve = (torch.from_numpy(x).to(device()) for x in arrays)
        return cls(forget, target - linear(forget, weight, bias), preserve)

    @classmethod
    def of_problem(cls, problem: LinearProblem) -> "Constants":
        """A copy of a problem's arrays, which may be statistics."""
        sides = (problem.forget, problem.residual, problem.preserve)
        return cls(*(torch.tensor(np.asarray(x), device=device()) for x in sides))


def loss_and_gradients(
    constants: Constants, costs: Float[Tensor, "3"], scale: float, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, its gradient with respect to A, its gradient with respect to B).

    Args:
        costs: costs of ‖R − s X_f (B A)ᵀ‖, ‖X_p (B A)ᵀ‖ and ‖B A‖.
        a: [r, D_in].
        b: [E, r].
    """
    forget, residual, preserve = constants
    h_forget, h_preserve = a @ forget.T, a @ preserve.T
    missed = torch.addmm(residual, h_forget.T, b.T, alpha=-scale)
    of_b, of_a, of_preserve = b.T @ b, a @ a.T, h_preserve @ h_preserve.T
    squares = torch.stack([(of_preserve * of_b).sum(), (of_a * of_b).sum()])
    norms = torch.cat([norm(missed)[None], squares.clamp(min=0).sqrt()])
    # The gradient of a norm of zero is zero, as in PyTorch.
    shares = torch.where(norms > 0, costs / norms, 0.0)
    by_missed, by_preserve, by_weight = shares[0] * -scale, shares[1], shares[2]
    by_a = torch.addmm((by_weight * of_b) @ a, (by_preserve * of_b) @ h_preserve, preserve)
    by_a = torch.addmm(by_a, (by_missed * b.T) @ missed.T, forget)
    by_b = (by_missed * (h_forget @ missed)).T
    by_b = torch.addmm(by_b, b, by_preserve * of_preserve + by_weight * of_a)
    return (costs * norms).sum(), by_a, by_b


def whole_algebra(
    constants: Constants, scale: float, wrap: Callable[..., Callable] = lambda function: function
) -> Backward:
    """The loss for `torch_loop.Loop`.

    wrap: what compiles `loss_and_gradients`, if anything does.
    """
    costs = [WEIGHTS.forget, WEIGHTS.preserve * abs(scale), WEIGHTS.weight]
    found = partial(wrap(loss_and_gradients), constants, torch.tensor(costs, device=device()))

    @torch.no_grad()
    def backward(a: Tensor, b: Tensor) -> Tensor:
        total, a.grad, b.grad = found(scale, a, b)
        return total

    return backward


def compiled_algebra(constants: Constants, scale: float) -> Backward:
    """As `whole_algebra`, compiled by torch.compile for these sizes only."""
    torch._dynamo.reset()
    return whole_algebra(constants, scale, partial(torch.compile, dynamic=False))
