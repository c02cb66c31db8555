"""Train a batch of settings as one vmapped program that shares the statistics."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jax_unlearn.models.arrays import on_device
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.objective.loss import TERMS, LossWeights, Problem, Reduction, shapes
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.adam.loop import State, run_chunk, start
from jax_unlearn.solvers.config import Select, SolverConfig, check_ranks
from jax_unlearn.solvers.grid import Setting, Trained, target_of

# Leaves: leaves of a batch of pytrees. Aims: by part of the problem, the arrays in which targets
# differ. Numbers: the λ's and the learning rate.
Leaves = list[Array]
Aims = dict[str, dict[str, Array]]
Numbers = tuple[list[Array], Array]
ProblemOf = Callable[[TargetKind, int], Problem]


def train_batch(
    problem_of: ProblemOf, groups: Sequence[Sequence[Setting]], common: SolverConfig, scale: float
) -> Iterator[Trained]:
    """Train one batch of settings, with an axis of targets and one of settings per target.

    Args:
        problem_of: the problem of a target and a seed.
        groups: the settings, grouped by target.
        common: the settings that all share.
        scale: alpha / rank of all settings.

    Raises:
        UserError: a rank that a Linear cannot have, or rows that are not finite.
    """
    problems: list[dict[str, Any]] = [dict(problem_of(*target_of(group[0]))) for group in groups]
    linears = shapes(problems[0])
    width, rank = max(map(len, groups)), max(s.rank for group in groups for s in group)
    for setting in itertools.chain(*groups):
        check_ranks(setting.config(common), linears)
    # Shorter groups are padded with their last setting, so that all fit one array.
    full = [[*group, *[group[-1]] * (width - len(group))] for group in groups]
    adapters = [[pad_rank(s, common, problems[0], rank, scale) for s in group] for group in full]
    tree = jax.tree.structure(adapters[0][0])

    def column(name: str) -> Float[Array, "groups width"]:
        values = [[getattr(s, name) for s in group] for group in full]
        return on_device(np.array(values, np.float32))

    numbers = [column(f"lambda_{term}") for term in TERMS], column("learning_rate")
    leaves, terms = optimise(
        stacked(adapters), aims_of(problems), problems[0], numbers, tree, common
    )
    if not np.isfinite(terms[:, :, 0]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    for i, group in enumerate(groups):
        for j, setting in enumerate(group):
            state = unflatten(tree, [np.asarray(leaf[i, j]) for leaf in leaves])
            yield chosen(setting, state, terms[i, j], common.select)


def chosen(
    setting: Setting, state: State, terms: Float[np.ndarray, "epochs terms"], select: Select
) -> Trained:
    """The adapter that `train` would select, and its terms."""
    last = select == "last"
    adapter, epoch = (state.adapter, state.epoch) if last else (state.best, state.best_epoch)
    return Trained(setting, trim_rank(adapter, setting.rank), terms[int(epoch)], bool(state.failed))


def optimise(
    adapters: Leaves,
    aims: Aims,
    problem: dict[str, Any],
    numbers: Numbers,
    tree: Any,
    common: SolverConfig,
) -> tuple[list[np.ndarray], Float[np.ndarray, "groups width epochs terms"]]:
    """Run all epochs; returns the leaves of every setting's final state, and all terms."""
    options: dict[str, Any] = {"tree": tree, "reduction": common.reduction}
    state, terms = start_all(adapters, aims, problem, numbers, **options)
    history = [np.asarray(terms)[:, :, None]]
    for first in range(0, common.epochs, common.chunk):
        length = min(common.chunk, common.epochs - first)
        state, terms = run_all(state, aims, problem, numbers, length=length, **options)
        history.append(np.asarray(terms))
    return [np.asarray(leaf) for leaf in state], np.concatenate(history, axis=2)


# A batch of pytrees is passed as a list of leaves, since the leaves of an adapter or state are
# annotated with the shapes of a single one.
@partial(jax.jit, static_argnames=("tree", "reduction"))
def start_all(
    adapters: Leaves,
    aims: Aims,
    problem: dict[str, Any],
    numbers: Numbers,
    *,
    tree: Any,
    reduction: Reduction,
) -> tuple[Leaves, Float[Array, "groups width terms"]]:
    """`loop.start` for every setting of every group."""

    def one(leaves: Leaves, problem: Problem, weights: LossWeights, _: Array) -> Any:
        return start(jax.tree.unflatten(tree, leaves), problem, weights)

    return for_all(one, adapters, aims, problem, numbers, reduction)


@partial(jax.jit, static_argnames=("tree", "reduction", "length"), donate_argnames="state")
def run_all(
    state: Leaves,
    aims: Aims,
    problem: dict[str, Any],
    numbers: Numbers,
    *,
    tree: Any,
    reduction: Reduction,
    length: int,
) -> tuple[Leaves, Float[Array, "groups width length terms"]]:
    """`loop.run_chunk` for every setting of every group."""

    def one(leaves: Leaves, problem: Problem, weights: LossWeights, rate: Array) -> Any:
        return run_chunk(unflatten(tree, leaves), problem, weights, rate, length=length)

    return for_all(one, state, aims, problem, numbers, reduction)


def for_all(
    one: Callable[[Leaves, Problem, LossWeights, Array], tuple[State, Array]],
    leaves: Leaves,
    aims: Aims,
    problem: dict[str, Any],
    numbers: Numbers,
    reduction: Reduction,
) -> tuple[Leaves, Float[Array, "groups width ..."]]:
    """Vmap `one` over settings: its leaves, its target's problem, its λ's and learning rate."""

    def of_setting(leaves: Leaves, lambdas: list[Array], rate: Array, aims: Aims) -> Any:
        weights = LossWeights(lambdas[0], lambdas[1], lambdas[2], reduction)
        state, terms = one(leaves, with_target(problem, aims), weights, rate)
        return jax.tree.leaves(state), terms

    of_group = jax.vmap(of_setting, (0, 0, 0, None))
    return jax.vmap(of_group)(leaves, *numbers, aims)


def unflatten(adapter: Any, leaves: Sequence[Array | np.ndarray]) -> State:
    """The state of one setting from its leaves; adapter: tree structure of an adapter."""
    example = jax.tree.unflatten(adapter, leaves[: adapter.num_leaves])
    number = jnp.zeros(())
    optimiser = optax.adam(0.0).init(example)
    tree = jax.tree.structure(
        State(example, example, optimiser, number, example, number, number, number)
    )
    return jax.tree.unflatten(tree, leaves)


def aims_of(problems: Sequence[Mapping[str, Any]]) -> Aims:
    """The arrays in which problems of several targets differ, stacked on a new leading axis.

    Besides the residuals these are the forget rows of a Linear, because `compress` changes rows and
    residuals together.
    """
    found: Aims = {}
    for name in problems[0]:
        parts = [problem[name] for problem in problems]
        linear = isinstance(parts[0], LinearProblem)
        fields = ("forget", "residual") if linear else ("residual",)
        found[name] = {
            field: pad_rows([getattr(part, field) for part in parts]) for field in fields
        }
    return found


def pad_rows(targets: Sequence[Float[Array | np.ndarray, "_ d"]]) -> Float[Array, "targets n d"]:
    """Stack the rows of each target, padded with zeros, which change no norm."""
    most = max(map(len, targets))
    # By NumPy: JAX would compile a program for each shape.
    padded = [np.pad(rows, ((0, most - len(rows)), (0, 0))) for rows in targets]
    return on_device(np.stack(padded))


def with_target(problem: Mapping[str, Any], aims: Aims) -> dict[str, Any]:
    """The problem with the forget rows and residuals of another target."""
    return {name: replace(part, **aims[name]) for name, part in problem.items()}


def pad_rank(
    setting: Setting, common: SolverConfig, problem: Problem, rank: int, scale: float
) -> LoraAdapter:
    """The initial adapter of `train`, padded with zeros to `rank`."""
    adapter = setting.config(common).init(problem)
    more = rank - setting.rank
    pairs = {
        name: LoraPair(np.pad(pair.a, ((0, more), (0, 0))), np.pad(pair.b, ((0, 0), (0, more))))
        for name, pair in adapter.pairs.items()
    }
    return LoraAdapter(pairs, alpha=scale * rank, rank=rank)


def trim_rank(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    """Remove the padding of `pad_rank`."""
    own = {name: LoraPair(pair.a[:rank], pair.b[:, :rank]) for name, pair in adapter.pairs.items()}
    return LoraAdapter(own, alpha=adapter.scale * rank, rank=rank)


def stacked(adapters: Sequence[Sequence[LoraAdapter]]) -> Leaves:
    """The leaves of adapters [groups, width], stacked on two leading axes."""
    rows = [[jax.tree.leaves(adapter) for adapter in group] for group in adapters]
    return [
        on_device(np.stack([np.stack([leaves[k] for leaves in group]) for group in rows]))
        for k in range(len(rows[0][0]))
    ]
