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
from jax import Array
from jaxtyping import Float

from jax_unlearn.errors import UserError
from jax_unlearn.lora import LoraAdapter, LoraPair
from jax_unlearn.objective import TERMS, LossWeights, Problem, shapes
from jax_unlearn.targets import TargetKind
from jax_unlearn.train import State, TrainConfig, check, run_chunk, start

# What R − change of all settings at once may take, in bytes.
MEMORY = 2**29


@dataclass(frozen=True)
class Setting:
    """One point of a sweep."""

    target: TargetKind
    seed: int
    lambda_forget: float
    lambda_preserve: float
    lambda_weight: float
    learning_rate: float
    rank: int

    def config(self, common: TrainConfig) -> TrainConfig:
        """The common settings with those of this point; the target is not one of them."""
        fields = asdict(self)
        del fields["target"]
        return replace(common, **fields)


@dataclass(frozen=True)
class Grid:
    """Values of each setting; a sweep is their product, or a sample of it."""

    target: tuple[TargetKind, ...]
    seed: tuple[int, ...]
    lambda_forget: tuple[float, ...]
    lambda_preserve: tuple[float, ...]
    lambda_weight: tuple[float, ...]
    learning_rate: tuple[float, ...]
    rank: tuple[int, ...]

    def settings(self, sample: int | None = None) -> list[Setting]:
        """Every point in the order of the fields, or so many drawn without replacement.

        Raises:
            UserError: a setting without a value, or a sample of none.
        """
        values = asdict(self)
        if empty := [name for name, given in values.items() if not given]:
            raise UserError(f"--{empty[0].replace('_', '-')}s: give at least one value")
        points = [Setting(*point) for point in itertools.product(*values.values())]
        if sample is None or sample >= len(points):
            return points
        if sample < 1:
            raise UserError(f"--sample {sample}: must be at least 1")
        chosen = np.random.default_rng(0).choice(len(points), sample, replace=False)
        return [points[i] for i in sorted(chosen)]


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


Residuals = Mapping[str, Array]
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
        problem_of: the problem of a target and a seed; they may differ in their residuals only.
        settings: one or more.
        common: epochs, alpha, reduction and select of all of them.
        progress: called with the number of settings that are done.

    Raises:
        UserError: a rank that a Linear cannot have, `select="held_out"`, or rows that are not
            finite.
    """
    if common.select == "held_out":
        raise UserError("--select held_out: a sweep has no images to choose by; take best or last")
    done: dict[Setting, Trained] = {}
    for scale, alike in by_scale(settings, common).items():
        for groups in batch(problem_of, alike):
            for trained in train_batch(problem_of, groups, common, scale):
                done[trained.setting] = trained
            progress(len(done))
    return [done[setting] for setting in settings]


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
    """One batch: an axis of residuals, and one of settings for each."""
    problems: list[dict[str, Any]] = [dict(problem_of(*target_of(group[0]))) for group in groups]
    linears = shapes(problems[0])
    width, rank = max(map(len, groups)), max(s.rank for group in groups for s in group)
    for setting in itertools.chain(*groups):
        check(setting.config(common), linears)
    # A group that is shorter is filled with its last setting, so that all fit one array.
    full = [[*group, *[group[-1]] * (width - len(group))] for group in groups]
    adapters = stacked([[padded(s, common, problems[0], rank, scale) for s in g] for g in full])
    residuals = stacked([{n: part.residual for n, part in p.items()} for p in problems])

    def column(name: str) -> Float[Array, "groups width"]:
        return jnp.array([[getattr(s, name) for s in group] for group in full], jnp.float32)

    lambdas = {term: column(f"lambda_{term}") for term in TERMS}
    weights = LossWeights(**lambdas, reduction=common.reduction)
    state, terms = optimise(
        adapters, residuals, problems[0], weights, column("learning_rate"), common
    )
    if not np.isfinite(terms[:, :, 0]).all():
        raise UserError("the loss is not finite at the start: the features or the target are not")
    last = common.select == "last"
    chosen = jax.tree.map(np.asarray, state.adapter if last else state.best)
    epochs = np.asarray(state.epoch if last else state.best_epoch)
    for i, group in enumerate(groups):
        for j, setting in enumerate(group):
            pairs = jax.tree.map(lambda x, i=i, j=j: x[i, j], chosen.pairs)
            stopped = bool(state.failed[i, j])
            adapter = cut(pairs, setting.rank, scale)
            yield Trained(setting, adapter, terms[i, j, epochs[i, j]], stopped)


def optimise(
    adapters: LoraAdapter,
    residuals: Residuals,
    problem: dict[str, Any],
    weights: LossWeights,
    learning_rate: Float[Array, "groups width"],
    common: TrainConfig,
) -> tuple[State, Float[np.ndarray, "groups width epochs terms"]]:
    """Every setting's final state and its terms after each step, from the start on."""
    state, terms = start_all(adapters, residuals, problem, weights)
    history = [np.asarray(terms)[:, :, None]]
    for first in range(0, common.epochs, common.chunk):
        length = min(common.chunk, common.epochs - first)
        state, terms = run_all(state, residuals, problem, weights, learning_rate, length=length)
        history.append(np.asarray(terms))
    return state, np.concatenate(history, axis=2)


@jax.jit
def start_all(
    adapters: LoraAdapter, residuals: Residuals, problem: dict[str, Any], weights: LossWeights
) -> tuple[State, Float[Array, "groups width terms"]]:
    """`train.start` for every setting of every group."""

    def one(adapter: LoraAdapter, weights: LossWeights, residuals: Residuals) -> Any:
        return start(adapter, having(problem, residuals), weights)

    return jax.vmap(jax.vmap(one, (0, 0, None)))(adapters, weights, residuals)


@partial(jax.jit, static_argnames="length", donate_argnames="state")
def run_all(
    state: State,
    residuals: Residuals,
    problem: dict[str, Any],
    weights: LossWeights,
    learning_rate: Float[Array, "groups width"],
    *,
    length: int,
) -> tuple[State, Float[Array, "groups width length terms"]]:
    """`train.run_chunk` for every setting of every group."""

    def one(state: State, weights: LossWeights, rate: Array, residuals: Residuals) -> Any:
        return run_chunk(state, having(problem, residuals), weights, rate, length=length)

    over = jax.vmap(jax.vmap(one, (0, 0, 0, None)))
    return over(state, weights, learning_rate, residuals)


def having(problem: Mapping[str, Any], residuals: Residuals) -> dict[str, Any]:
    """The problem with other residuals: what targets differ in, and nothing else."""
    return {name: replace(part, residual=residuals[name]) for name, part in problem.items()}


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


def cut(pairs: Mapping[str, LoraPair], rank: int, scale: float) -> LoraAdapter:
    """Without the zeros."""
    own = {name: LoraPair(pair.a[:rank], pair.b[:, :rank]) for name, pair in pairs.items()}
    return LoraAdapter(own, alpha=scale * rank, rank=rank)


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays, or lists of them, along new leading axes."""
    if isinstance(trees[0], list):
        trees = [stacked(inner) for inner in trees]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
