"""Implementations of the same training, from PyTorch's published loop to our scan on statistics.

Each minimises the same loss with Adam from the same start. They are built from arrays in memory:
weight, bias, forget, target and preserve, the arguments of `objective.linear_problem`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jaxtyping import Float

from benchmarks.harness import PUBLISHED
from benchmarks.speed.torch_algebra import Constants, compiled_algebra, whole_algebra
from benchmarks.speed.torch_loop import RATE, Loop, Rows, published
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import LinearProblem, compress, linear_problem
from jax_unlearn.objective.loss import Problem, loss
from jax_unlearn.solvers.adam.loop import run_chunk, start

NAME = "linear_fc2"
CONFIG = PUBLISHED
WEIGHTS = CONFIG.loss_weights()

ALGEBRA = "PyTorch eager, whole algebra"
STATISTICS = "PyTorch eager, algebra on statistics"
COMPILED_ALGEBRA = "torch.compile, whole algebra"
COMPILED = "torch.compile, algebra on statistics"
PUBLISHED = "PyTorch eager, published loop"
OP_BY_OP = "JAX op by op, on statistics"
JIT = "JAX jit of a step, on statistics"
SCAN = "JAX jit of a scan, on statistics"

Arrays = tuple[np.ndarray, ...]


class Run(Protocol):
    """A training that continues with each call of `advance`.

    unit: smallest number of steps that is timed.
    """

    unit: int

    def begin(self, learning_rate: float = RATE) -> None: ...

    def advance(self, steps: int) -> None: ...

    def adapter(self) -> LoraAdapter: ...


class Steps:
    """JAX steps called one by one from Python.

    Args:
        problem: the problem.
        wrap: `jax.jit`, or the identity, with which each jax.numpy call is dispatched separately.
    """

    unit = 1

    def __init__(self, problem: Problem, wrap: Callable[[Any], Any]) -> None:
        self.problem, self.step = problem, wrap(one_step)

    def begin(self, learning_rate: float = RATE) -> None:
        self.rate, self.now = learning_rate, CONFIG.init(self.problem)
        self.state = optax.adam(learning_rate).init(self.now)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.now, self.state = self.step(self.now, self.state, self.problem, self.rate)
        jax.block_until_ready(self.now)

    def adapter(self) -> LoraAdapter:
        return self.now


def one_step(
    adapter: LoraAdapter, state: optax.OptState, problem: Problem, learning_rate: float
) -> tuple[LoraAdapter, optax.OptState]:
    gradient, _ = jax.grad(loss, has_aux=True)(adapter, problem, WEIGHTS)
    updates, state = optax.adam(learning_rate).update(gradient, state, adapter)
    return optax.apply_updates(adapter, updates), state


class Scan:
    """Training with scans over steps, as in `train`; each length is compiled once.

    Args:
        problem: the problem.
        unit: steps per scan; remaining steps are a shorter scan.
    """

    def __init__(self, problem: Problem, unit: int) -> None:
        self.problem, self.unit = problem, unit

    def begin(self, learning_rate: float = RATE) -> None:
        self.rate = learning_rate
        self.state, terms = start(CONFIG.init(self.problem), self.problem, WEIGHTS)
        self.terms = [terms[None]]

    def advance(self, steps: int) -> None:
        while steps:
            length = min(steps, self.unit)
            self.state, terms = run_chunk(
                self.state, self.problem, WEIGHTS, self.rate, length=length
            )
            self.terms.append(terms)
            steps -= length
        jax.block_until_ready(self.state)

    def objective(self) -> float:
        """The lowest loss so far."""
        return float(self.state.best_total)

    def best(self) -> LoraAdapter:
        """A copy of the adapter with the lowest loss so far."""
        return jax.tree.map(np.array, self.state.best)

    def adapter(self) -> LoraAdapter:
        return self.state.adapter

    def history(self) -> Float[np.ndarray, " epochs"]:
        """The loss at the start and after each step."""
        return np.concatenate([np.asarray(terms).sum(axis=1) for terms in self.terms])


def published_loop(arrays: Arrays, init: LoraAdapter) -> Loop:
    return Loop(published(Rows.of(*arrays), init.scale), init, fused=False)


def algebra_loop(arrays: Arrays, init: LoraAdapter) -> Loop:
    return Loop(whole_algebra(Constants.of_rows(*arrays), init.scale), init, fused=True)


def compiled_algebra_loop(arrays: Arrays, init: LoraAdapter) -> Loop:
    """As `algebra_loop`, with the loss compiled by torch.compile; Adam stays eager."""
    return Loop(compiled_algebra(Constants.of_rows(*arrays), init.scale), init, fused=True)


def statistics_loop(problem: Mapping[str, LinearProblem], init: LoraAdapter) -> Loop:
    """The whole algebra on a problem from `statistics_of`."""
    constants = Constants.of_problem(problem[NAME])
    return Loop(whole_algebra(constants, init.scale), init, fused=True)


def compiled_loop(problem: Mapping[str, LinearProblem], init: LoraAdapter) -> Loop:
    """As `statistics_loop`, with the loss compiled by torch.compile; Adam stays eager."""
    constants = Constants.of_problem(problem[NAME])
    return Loop(compiled_algebra(constants, init.scale), init, fused=True)


def problem_of(arrays: Arrays) -> dict[str, LinearProblem]:
    """The problem on the rows; waits until its residual is computed."""
    return jax.block_until_ready({NAME: linear_problem(*arrays)})


def statistics_of(problem: Mapping[str, LinearProblem]) -> dict[str, Any]:
    """The problem on as few rows as give the same loss, as in `train`."""
    return jax.block_until_ready(compress(problem))
