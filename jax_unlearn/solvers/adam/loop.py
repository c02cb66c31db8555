"""Adam on A and B in a jitted Optax loop: one `lax.scan` per chunk of epochs, donated state."""

import time
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jax_unlearn.models.arrays import on_device
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import compress
from jax_unlearn.objective.loss import LossWeights, Problem, loss, loss_alone
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.snapshots import NoSnapshots, Snapshot, Stage
from jax_unlearn.solvers.adam.sharding import replicate, shard_rows
from jax_unlearn.solvers.config import Select, SolverConfig, check, checked_init
from jax_unlearn.solvers.result import Progress, Result, history_of


class State(NamedTuple):
    """Carry of the training scan; its buffers are donated.

    `adapter` always has a finite loss: a step to one that is not finite is rejected and sets
    `failed`.
    """

    adapter: LoraAdapter
    gradient: LoraAdapter
    optimiser: optax.OptState
    epoch: Int[Array, ""]
    best: LoraAdapter
    best_total: Float[Array, ""]
    best_epoch: Int[Array, ""]
    failed: Bool[Array, ""]


@jax.jit
def start(
    adapter: LoraAdapter, problem: Problem, weights: LossWeights
) -> tuple[State, Float[Array, " terms"]]:
    """The state before the first step, and the terms of the initial adapter."""
    (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(adapter, problem, weights)
    optimiser = optax.adam(0.0).init(adapter)
    zero = jnp.zeros((), jnp.int32)
    state = State(adapter, gradient, optimiser, zero, adapter, total, zero, ~jnp.isfinite(total))
    # Each donated buffer may occur only once in the state.
    return jax.tree.map(jnp.copy, state), terms


@partial(jax.jit, static_argnames="length", donate_argnames="state")
def run_chunk(
    state: State,
    problem: Problem,
    weights: LossWeights,
    learning_rate: float | Float[Array, ""],
    *,
    length: int,
) -> tuple[State, Float[Array, "length terms"]]:
    """Run `length` Adam steps; returns the state and the terms after each step."""
    adam = optax.adam(learning_rate)

    def step(state: State, _: None) -> tuple[State, Float[Array, " terms"]]:
        updates, optimiser = adam.update(state.gradient, state.optimiser, state.adapter)
        adapter = optax.apply_updates(state.adapter, updates)
        (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(adapter, problem, weights)
        epoch = state.epoch + 1
        good = jnp.isfinite(total) & ~state.failed
        better = good & (total < state.best_total)
        moved = (adapter, gradient, optimiser, epoch)
        record = (adapter, total, epoch)
        kept = _where(good, moved, state[:4]) + _where(better, record, state[4:7])
        return State._make((*kept, ~good)), terms

    return jax.lax.scan(step, state, length=length)


def _where(condition: Bool[Array, ""], yes: tuple, no: tuple) -> tuple:
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)


def train(
    problem: Problem,
    config: SolverConfig,
    *,
    held_out: Problem | None = None,
    init: LoraAdapter | None = None,
    progress: Progress | None = None,
    stage: Stage | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Minimise the three-term loss over A and B with Adam.

    Args:
        problem: the parts of the loss: a `LinearProblem` by a Linear's name, a `MergerProblem` by
            a Merger's.
        config: the settings; the same seed gives the same bytes on the same machine.
        held_out: rows to choose the adapter by, with `select="held_out"`.
        init: initial adapter; by default A is Kaiming uniform and B is zero.
        progress: called after each chunk with the epochs done and the last row of the history.
        stage: snapshots to resume from, if they are of the same λ_f, and to save to after each
            chunk.
        mesh: devices over which the rows of each Linear are sharded (`sharding.shard_rows`); the
            adapter and the optimiser state are replicated. By default one device is used.

    Rows of a Linear are replaced by fewer equivalent ones where possible (`linear.compress`;
    `linear.describe` shows how many).

    A step to a loss that is not finite is rejected and ends the loop: `Result.stopped` names the
    epoch, and the adapter is chosen among the earlier ones.

    Raises:
        UserError: `select="held_out"` without held-out rows, a rank that a Linear cannot have,
            or rows that are not finite.
    """
    check(config, problem, held_out)
    if config.select == "held_out" and held_out is None:
        raise UserError("select 'held_out' needs held-out rows to choose by")
    weights = config.loss_weights()
    begun = time.perf_counter()
    problem = shard_rows(compress(problem), mesh)
    adapter = replicate(config.init(problem) if init is None else checked_init(init, problem), mesh)
    state, first_terms = replicate(start(adapter, problem, weights), mesh)
    if state.failed:
        raise UserError("the loss is not finite at the start: the features or the target are not")
    terms_of = [np.asarray(first_terms)[None]]
    watch = None
    if held_out and config.select == "held_out":
        watch = HeldOut(shard_rows(compress(held_out), mesh), weights)
        watch.look(state)
    stage = stage or NoSnapshots()
    if (saved := stage.load()) and saved.facts["lambda_forget"] == config.lambda_forget:
        state, terms_of = restored(saved, state, watch)
        state = replicate(state, mesh)
    laps = []
    while (done := sum(map(len, terms_of)) - 1) < config.epochs and not state.failed:
        lap = time.perf_counter()
        length = min(config.chunk, config.epochs - done)
        state, terms = run_chunk(state, problem, weights, config.learning_rate, length=length)
        terms_of.append(np.asarray(terms))
        laps.append(time.perf_counter() - lap)
        if watch:
            watch.look(state)
        if progress:
            last = int(state.epoch)
            progress(last, history_of(np.concatenate(terms_of)[last:][:1], last)[0])
        stage.step(partial(snapshot, state, terms_of, watch, config))
    stage.done(partial(snapshot, state, terms_of, watch, config))

    history = history_of(np.concatenate(terms_of), 0)
    last = int(state.epoch)
    stopped = f"the loss is not finite at epoch {last + 1}; lower --learning-rate"
    adapter, epoch = _select(state, watch, config.select)
    return Result(
        jax.tree.map(np.asarray, adapter),
        history[: last + 1],
        epoch,
        stopped if state.failed else None,
        {
            "first_chunk": laps[0] if laps else 0.0,
            "later_chunk": median(laps[1:] or [0.0]),
            "total": time.perf_counter() - begun,
        },
    )


def snapshot(
    state: State,
    terms: list[Float[np.ndarray, "_ terms"]],
    watch: "HeldOut | None",
    config: SolverConfig,
) -> Snapshot:
    """A snapshot from which `restored` continues to the same bytes."""
    leaves = {f"state.{i}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    arrays = leaves | {"terms": np.concatenate(terms)}
    facts: dict[str, Any] = {"lambda_forget": config.lambda_forget}
    if watch and watch.adapter:
        kept = jax.tree.leaves(watch.adapter)
        arrays |= {f"held_out.{i}": np.array(leaf) for i, leaf in enumerate(kept)}
        facts |= {"total": watch.total, "epoch": watch.epoch}
    return Snapshot(arrays, facts)


def restored(
    saved: Snapshot, state: State, watch: "HeldOut | None"
) -> tuple[State, list[Float[np.ndarray, "_ terms"]]]:
    """The state and the terms of a snapshot; `state` gives the shapes."""

    def tree(name: str, like: Any) -> Any:
        leaves, of = jax.tree.flatten(like)
        found = [on_device(saved.arrays[f"{name}.{i}"]) for i in range(len(leaves))]
        return jax.tree.unflatten(of, found)

    if watch:
        watch.total, watch.epoch = saved.facts["total"], saved.facts["epoch"]
        watch.adapter = jax.tree.map(np.asarray, tree("held_out", state.adapter))
    return tree("state", state), [saved.arrays["terms"]]


class HeldOut:
    """Remembers the adapter with the lowest loss on held-out rows."""

    def __init__(self, problem: Problem, weights: LossWeights) -> None:
        self.problem, self.weights = problem, weights
        self.total = np.inf
        self.adapter: LoraAdapter | None = None
        self.epoch = 0

    def look(self, state: State) -> None:
        total = float(loss_alone(state.adapter, self.problem, self.weights)[0])
        if total < self.total:
            # A copy, since the next chunk donates the state's buffers.
            self.adapter = jax.tree.map(np.array, state.adapter)
            self.total, self.epoch = total, int(state.epoch)


def _select(state: State, watch: HeldOut | None, select: Select) -> tuple[LoraAdapter, int]:
    if select == "held_out" and watch and watch.adapter:
        return watch.adapter, watch.epoch
    if select == "last":
        return state.adapter, int(state.epoch)
    return state.best, int(state.best_epoch)
