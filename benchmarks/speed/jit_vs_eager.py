"""Seconds a step of the same training, from the published PyTorch loop to a scan on statistics.

Every variant is Adam of one loss from one start on the same rows, a tenth of them to forget (rows
and targets: benchmarks/speed/synthetic_rows.py). They run in this process, in turns; a ratio is the
median over the rounds. The objectives after the same number of steps, each taken in float64 from
what the variant has trained, must agree, or nothing is written.

torch eager: the published loop, whose Linear is computed anew in every step. torch.compile: its
loss compiled, Adam eager. torch eager, W once: our form of the loss in PyTorch, so that what the
algebra gains can be told from what the compiler does. JAX op by op: our loss and optax without any
jit around them (not jax.disable_jit, which only adds to it): each jax.numpy call is dispatched by
itself. JAX jit: one step compiled, called from Python. JAX scan: `train.run_chunk`, on the rows or
on their statistics (`statistics.compress`). Above --in-memory rows there is only the last, on
statistics gathered from a stream of blocks: `gather.Gatherer` and `statistics.linear_part`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import jax
import numpy as np
import optax
import torch
from matplotlib.figure import Figure

from benchmarks.harness import clocked, command, figure, ratio, save
from benchmarks.speed.float64_objective import Exact
from benchmarks.speed.streamed_rows import gather, sides
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.torch_loop import Loop, Rows, once, published
from benchmarks.speed.tower import machine
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import compress, linear_problem
from jax_unlearn.objective.loss import Problem, loss
from jax_unlearn.solvers.adam.loop import run_chunk, start
from jax_unlearn.solvers.config import TrainConfig

NAME = "linear_fc2"
CONFIG = TrainConfig()
WEIGHTS = CONFIG.loss_weights()
EAGER, STATISTICS = "torch eager", "JAX scan on statistics"
# A relative difference of two variants' losses.
TOLERANCE = 1e-4


class Run(Protocol):
    """A training that goes on from where its last call left it."""

    def begin(self) -> None: ...

    def advance(self, steps: int) -> None: ...

    def adapter(self) -> LoraAdapter: ...


class Steps:
    """Steps called from Python.

    Args:
        wrap: `jax.jit`, or nothing.
    """

    def __init__(self, problem: Problem, wrap: Callable[[Any], Any]) -> None:
        self.problem, self.step = problem, wrap(one_step)

    def begin(self) -> None:
        self.now = CONFIG.init(self.problem)
        self.state = optax.adam(CONFIG.learning_rate).init(self.now)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.now, self.state = self.step(self.now, self.state, self.problem)
        jax.block_until_ready(self.now)

    def adapter(self) -> LoraAdapter:
        return self.now


def one_step(
    adapter: LoraAdapter, state: optax.OptState, problem: Problem
) -> tuple[LoraAdapter, optax.OptState]:
    gradient, _ = jax.grad(loss, has_aux=True)(adapter, problem, WEIGHTS)
    updates, state = optax.adam(CONFIG.learning_rate).update(gradient, state, adapter)
    return optax.apply_updates(adapter, updates), state


class Scan:
    """What `train` does: a scan over steps, compiled once for their number."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def begin(self) -> None:
        self.state, _ = start(CONFIG.init(self.problem), self.problem, WEIGHTS)

    def advance(self, steps: int) -> None:
        rate = CONFIG.learning_rate
        self.state, _ = run_chunk(self.state, self.problem, WEIGHTS, rate, length=steps)
        jax.block_until_ready(self.state)

    def adapter(self) -> LoraAdapter:
        return self.state.adapter


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("jit_vs_eager", __doc__, rounds=5)
    add = parser.add_argument
    add("--sizes", nargs="+", default=["4096x2048", "4608x4096"], help="D_in x E of the Linears")
    add("--rows", nargs="+", type=int, default=[2500, 25_000, 1_000_000], help="rows of both sides")
    add("--in-memory", type=int, default=100_000, help="more rows than this are streamed")
    add("--steps", type=int, default=3, help="steps until objectives are compared; of one scan")
    add("--seconds", type=float, default=1.0, help="least length of a turn")
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[*VARIANTS],
        metavar="NAME",
        help="of the names above",
    )
    add("--more", action="store_true", help="keep the cases that --out has of this machine")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "cases": []}
    if options.more:
        earlier = json.loads(options.out.read_text())
        assert earlier["machine"] == results["machine"]
        results = earlier
    print(json.dumps(results["machine"]), flush=True)
    for size in options.sizes:
        for rows in options.rows:
            source = Source(*map(int, size.split("x")))
            results["cases"].append(case(source, rows, options))
            print(json.dumps(results["cases"][-1], indent=1), flush=True)
            # After each: the later ones take long.
            save(options.out, results, plot(results["cases"]))


def case(source: Source, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size and number of rows."""
    forget, preserve = sides(rows, 0.1)
    facts: dict[str, Any] = {"d_in": source.d_in, "e": source.e}
    facts |= {"forget": forget, "preserve": preserve, "streamed": rows > options.in_memory}
    jax.clear_caches()
    if rows > options.in_memory:
        seconds, part = gather(source, forget, preserve)
        facts["gather"], statistics, exact = seconds, {NAME: part}, None
        runs: dict[str, Run] = {STATISTICS: Scan(statistics)}
    else:
        arrays = source.linear_arrays(forget, preserve)
        problem = {NAME: linear_problem(*arrays)}
        facts["gather"], statistics = clocked(lambda: jax.block_until_ready(compress(problem)))
        runs, exact = in_memory(arrays, problem, statistics, options.variants), Exact(arrays)
    kept = statistics[NAME]
    facts["kept"] = {"forget": len(kept.forget), "preserve": len(kept.preserve)}
    return facts | measure(runs, exact, options)


def torch_loop(form: Callable[..., Any], arrays: tuple[np.ndarray, ...], problem: Problem) -> Loop:
    init = CONFIG.init(problem)
    return Loop(form(Rows.of(*arrays), init.scale), init, CONFIG.learning_rate)


def compiled(rows: Rows, scale: float) -> Any:
    # A size of its own for every case, and none of the last one's guesses.
    torch._dynamo.reset()
    return torch.compile(published(rows, scale), dynamic=False)


VARIANTS: Mapping[str, Callable[[Any, Any, Any], Run]] = {
    EAGER: lambda arrays, problem, _: torch_loop(published, arrays, problem),
    "torch.compile": lambda arrays, problem, _: torch_loop(compiled, arrays, problem),
    "torch eager, W once": lambda arrays, problem, _: torch_loop(once, arrays, problem),
    "JAX op by op": lambda _, problem, __: Steps(problem, lambda step: step),
    "JAX jit": lambda _, problem, __: Steps(problem, jax.jit),
    "JAX scan": lambda _, problem, __: Scan(problem),
    STATISTICS: lambda _, __, statistics: Scan(statistics),
}


def in_memory(
    arrays: tuple[np.ndarray, ...], problem: Problem, statistics: Problem, names: Sequence[str]
) -> dict[str, Run]:
    """The variants of these names."""
    return {name: VARIANTS[name](arrays, problem, statistics) for name in VARIANTS if name in names}


def measure(
    runs: dict[str, Run], exact: Exact | None, options: argparse.Namespace
) -> dict[str, Any]:
    """First calls, one variant after the other, then rounds of turns of the least length.

    Args:
        exact: the objective, if the rows are in memory.
    """
    steps = options.steps
    first, failed = first_calls(runs, steps)
    runs = {name: runs[name] for name in first}
    facts = {"steps": steps, "failed": failed, **(agreement(runs, exact) if exact else {})}
    seconds = rounds(runs, steps, options)
    table = {name: row(seconds[name], first[name], steps, seconds.get(EAGER)) for name in runs}
    return {**facts, "variants": table}


def agreement(runs: dict[str, Run], exact: Exact) -> dict[str, Any]:
    """Every variant's objective.

    Raises:
        AssertionError: the objectives differ.
    """
    objectives = {name: exact(run.adapter()) for name, run in runs.items()}
    spread = max(objectives.values()) / min(objectives.values()) - 1
    assert spread <= TOLERANCE, f"objectives differ by {spread:.1e}: {objectives}"
    return {"objectives": objectives, "spread": spread}


def rounds(runs: dict[str, Run], steps: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step in each round."""
    chunks = {
        name: 1 + int(options.seconds / clocked(lambda run=run: run.advance(steps))[0])
        for name, run in runs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            turn, _ = clocked(lambda r=run, n=chunks[name]: [r.advance(steps) for _ in range(n)])
            seconds[name].append(turn / (chunks[name] * steps))
    return seconds


def first_calls(runs: dict[str, Run], steps: int) -> tuple[dict[str, float], dict[str, str]]:
    """(Seconds of the first start and steps, why others could not)."""
    first, failed = {}, {}
    for name, run in runs.items():

        def call(run: Run = run) -> None:
            run.begin()
            run.advance(steps)

        try:
            first[name], _ = clocked(call)
        except Exception as error:
            # Only this one needs more than its own library: a C++ compiler and Python's headers.
            if name != "torch.compile":
                raise
            failed[name] = f"{type(error).__name__}: {error}".strip()[:500]
            print(f"{name} cannot run here: {failed[name]}", flush=True)
    return first, failed


def row(
    seconds: list[float], first: float, steps: int, eager: list[float] | None
) -> dict[str, Any]:
    """One variant: a step's median, what the first call took more, the ratio to PyTorch."""
    step = median(seconds)
    facts = {"seconds": step, "all_seconds": seconds}
    facts |= {"first_call": first, "compile": max(0.0, first - step * steps)}
    return facts | (ratio(eager, seconds) if eager else {})


def plot(cases: list[dict[str, Any]]) -> Figure:
    """Seconds a step of every variant, a colour a case."""
    made, axes = figure()
    names = [name for name in VARIANTS if any(name in case["variants"] for case in cases)]
    for i, case in enumerate(cases):
        known = [(j, case["variants"][n]) for j, n in enumerate(names) if n in case["variants"]]
        label = f"{case['forget'] + case['preserve']:,} × {case['d_in']} → {case['e']}"
        places = [j + (i - len(cases) / 2 + 0.5) * 0.8 / len(cases) for j, _ in known]
        heights = [variant["seconds"] for _, variant in known]
        axes.bar(places, heights, 0.8 / len(cases), label=label)
    axes.set(yscale="log", ylabel="seconds a step")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8)
    axes.legend(fontsize=8)
    return made


if __name__ == "__main__":
    main()
