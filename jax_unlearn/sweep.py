"""Many trainings as one program: settings are a batch axis, and the statistics are shared."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jax_unlearn.errors import UserError
from jax_unlearn.grid import Setting
from jax_unlearn.lora import LoraAdapter, LoraPair
from jax_unlearn.moments import with_moments
from jax_unlearn.objective import (
    TERMS,
    LinearProblem,
    LossWeights,
    Problem,
    Reduction,
    shapes,
)
from jax_unlearn.solve import solve
from jax_unlearn.targets import TargetKind
from jax_unlearn.train import State, TrainConfig, check, run_chunk, start

# What R − change of all settings at once may take, in bytes.
MEMORY = 2**29


@dataclass(frozen=True)
class Trained:
    """What a setting came to: its adapter, and the loss's terms of it, in the order of TERMS."""

    setting: Setting
    adapter: LoraAdapter
    terms: Float[np.ndarray, " terms"]
    stopped: bool

    def row(self) -> dict[str, float | int | str | bool]:
        """For a table."""
        terms = dict(zip(TERMS, map(float, self.terms), strict=True))
        total = float(self.terms.sum())
        return {**asdict(self.setting), **terms, "total": total, "stopped": self.stopped}


# The leaves of a batch of trees; by Linear, what its targets differ in; λ's and learning rate.
Leaves = list[Array]
Aims = dict[str, dict[str, Array]]
Numbers = tuple[list[Array], Array]
ProblemOf = Callable[[TargetKind, int], Problem]


def train_all(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: TrainConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trained]:
    """Train every setting, as `train` would one: the same start, steps and choice of the adapter.

    Ranks are padded to the largest with rows of A and columns of B that are zero and stay so.

    Args:
        problem_of: the problem of a target and a seed; they may differ in the rows to
            forget and their residuals only.
        settings: one or more.
        common: epochs, alpha, reduction and select of all of them.
        progress: called with the number of settings that are done.

    Raises:
        UserError: a rank that a Linear cannot have, `select="held_out"`, or rows that are not
            finite.
    """
    refuse_held_out(common)
    done: dict[Setting, Trained] = {}
    for scale, alike in by_scale(settings, common).items():
        for groups in batch(problem_of, alike):
            for trained in train_batch(problem_of, groups, common, scale):
                done[trained.setting] = trained
            progress(len(done))
    return [done[setting] for setting in settings]


def solve_all(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: TrainConfig,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trained]:
    """The same with the closed form, one after another; learning rates have no say in it.

    Neighbours with one target share the moments of its rows; no two targets' are kept at a time.
    """
    refuse_held_out(common)
    found = []
    for target, alike in itertools.groupby(settings, target_of):
        problem = with_moments(problem_of(*target))
        for setting in alike:
            result = solve(problem, setting.config(common))
            row = result.history[result.epoch]
            terms = np.array([row[name] for name in TERMS])
            found.append(Trained(setting, result.adapter, terms, result.stopped is not None))
            progress(len(found))
    return found


def refuse_held_out(common: TrainConfig) -> None:
    """Raises a `UserError` where it is asked for."""
    if common.select == "held_out":
        raise UserError("--select held_out: a sweep has no images to choose by; take best or last")


def by_scale(settings: Sequence[Setting], common: TrainConfig) -> dict[float, list[Setting]]:
    """Settings by alpha / rank, which is a constant of the program: one, unless alpha is given."""
    found: dict[float, list[Setting]] = {}
    for setting in settings:
        scale = 1.0 if common.alpha is None else common.alpha / setting.rank
        found.setdefault(scale, []).append(setting)
    return found


def batch(problem_of: ProblemOf, settings: Sequence[Setting]) -> Iterator[list[list[Setting]]]:
    """Settings in batches [targets, settings of each], as many as memory allows at once."""
    groups: dict[tuple[TargetKind, int], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(target_of(setting), []).append(setting)
    problem = problem_of(*next(iter(groups)))
    parts: Sequence[Any] = list(problem.values())
    size = 4 * sum(math.prod(part.residual.shape) for part in parts)
    most = max(1, MEMORY // max(1, size))
    width = min(most, max(map(len, groups.values())))
    rows = [g[i : i + width] for g in groups.values() for i in range(0, len(g), width)]
    for first in range(0, len(rows), max(1, most // width)):
        yield rows[first : first + max(1, most // width)]


def target_of(setting: Setting) -> tuple[TargetKind, int]:
    """What the residual depends on: only targets that are drawn depend on the seed."""
    return setting.target, setting.seed if setting.target in ("random", "matched") else 0


def train_batch(
    problem_of: ProblemOf, groups: Sequence[Sequence[Setting]], common: TrainConfig, scale: float
) -> Iterator[Trained]:
    """One batch: an axis of targets, and one of settings for each."""
    problems: list[dict[str, Any]] = [dict(problem_of(*target_of(group[0]))) for group in groups]
    linears = shapes(problems[0])
    width, rank = max(map(len, groups)), max(s.rank for group in groups for s in group)
    for setting in itertools.chain(*groups):
        check(setting.config(common), linears)
    # A group that is shorter is filled with its last setting, so that all fit one array.
    full = [[*group, *[group[-1]] * (width - len(group))] for group in groups]
    adapters = [[padded(s, common, problems[0], rank, scale) for s in group] for group in full]
    tree = jax.tree.structure(adapters[0][0])

    def column(name: str) -> Float[Array, "groups width"]:
        return jnp.array([[getattr(s, name) for s in group] for group in full], jnp.float32)

    numbers = [column(f"lambda_{term}") for term in TERMS], column("learning_rate")
    leaves, terms = optimise(stacked(adapters), aims(problems), problems[0], numbers, tree, common)
    if not np.isfinite(terms[:, :, 0]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    for i, group in enumerate(groups):
        for j, setting in enumerate(group):
            state = unflatten(tree, [np.asarray(leaf[i, j]) for leaf in leaves])
            last = common.select == "last"
            chosen, epoch = (state.adapter, state.epoch) if last else (state.best, state.best_epoch)
            own = terms[i, j, int(epoch)]
            yield Trained(setting, cut(chosen, setting.rank), own, bool(state.failed))


def optimise(
    adapters: Leaves,
    aims: Aims,
    problem: dict[str, Any],
    numbers: Numbers,
    tree: Any,
    common: TrainConfig,
) -> tuple[list[np.ndarray], Float[np.ndarray, "groups width epochs terms"]]:
    """The leaves of every setting's final state, and its terms from the start on."""
    state, terms = start_all(
        adapters, aims, problem, numbers, tree=tree, reduction=common.reduction
    )
    history = [np.asarray(terms)[:, :, None]]
    for first in range(0, common.epochs, common.chunk):
        length = min(common.chunk, common.epochs - first)
        state, terms = run_all(
            state,
            aims,
            problem,
            numbers,
            tree=tree,
            reduction=common.reduction,
            length=length,
        )
        history.append(np.asarray(terms))
    return [np.asarray(leaf) for leaf in state], np.concatenate(history, axis=2)


# A batch of trees is the list of their leaves: the trees themselves know the shape of one.
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
    """`train.start` for every setting of every group."""

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
    """`train.run_chunk` for every setting of every group."""

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
    """`one` of each setting's leaves, its target's problem, λ's and learning rate."""

    def of_setting(leaves: Leaves, lambdas: list[Array], rate: Array, aims: Aims) -> Any:
        weights = LossWeights(lambdas[0], lambdas[1], lambdas[2], reduction)
        state, terms = one(leaves, aiming(problem, aims), weights, rate)
        return jax.tree.leaves(state), terms

    of_group = jax.vmap(of_setting, (0, 0, 0, None))
    return jax.vmap(of_group)(leaves, *numbers, aims)


def unflatten(adapter: Any, leaves: Sequence[Array | np.ndarray]) -> State:
    """The state of one setting from its leaves; adapter: the tree of one."""
    example = jax.tree.unflatten(adapter, leaves[: adapter.num_leaves])
    number = jnp.zeros(())
    optimiser = optax.adam(0.0).init(example)
    tree = jax.tree.structure(
        State(example, example, optimiser, number, example, number, number, number)
    )
    return jax.tree.unflatten(tree, leaves)


def aims(problems: Sequence[Mapping[str, Any]]) -> Aims:
    """What problems of several targets differ in, along a new leading axis.

    Rows may have been replaced together with their residuals; fewer are filled with zeros, which
    no norm feels.
    """
    found: Aims = {}
    for name in problems[0]:
        parts = [problem[name] for problem in problems]
        linear = isinstance(parts[0], LinearProblem)
        fields = ("forget", "residual") if linear else ("residual",)
        most = max(len(part.residual) for part in parts)
        found[name] = {
            field: jnp.stack(
                [
                    jnp.pad(rows, ((0, most - len(rows)), (0, 0)))
                    for rows in (getattr(part, field) for part in parts)
                ]
            )
            for field in fields
        }
    return found


def aiming(problem: Mapping[str, Any], aims: Aims) -> dict[str, Any]:
    """The problem with the rows to forget and the residuals of another target."""
    return {name: replace(part, **aims[name]) for name, part in problem.items()}


def padded(
    setting: Setting, common: TrainConfig, problem: Problem, rank: int, scale: float
) -> LoraAdapter:
    """The start of `train`, with zeros up to a rank."""
    adapter = setting.config(common).init(problem)
    more = rank - setting.rank
    pairs = {
        name: LoraPair(jnp.pad(pair.a, ((0, more), (0, 0))), jnp.pad(pair.b, ((0, 0), (0, more))))
        for name, pair in adapter.pairs.items()
    }
    return LoraAdapter(pairs, alpha=scale * rank, rank=rank)


def cut(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    """Without the zeros."""
    own = {name: LoraPair(pair.a[:rank], pair.b[:, :rank]) for name, pair in adapter.pairs.items()}
    return LoraAdapter(own, alpha=adapter.scale * rank, rank=rank)


def stacked(adapters: Sequence[Sequence[LoraAdapter]]) -> Leaves:
    """The leaves of adapters [groups, width], each along two leading axes."""
    rows = [[jax.tree.leaves(adapter) for adapter in group] for group in adapters]
    return [
        jnp.stack([jnp.stack([leaves[k] for leaves in group]) for group in rows])
        for k in range(len(rows[0][0]))
    ]
