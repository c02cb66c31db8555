"""256 settings against one: an epoch of Adam on the shipped model, and the whole closed form.

The images of a concept go through the shipped tower once; both sides train on their statistics with
the defaults of `jax-unlearn demo`, except for the λ's, rates and seeds of the settings, at rank 5.
They are timed alternately in this process: `train_all` with all settings and `train` with one, each
for a few epochs and for many. Their difference is the steady state, without compilation, start and
reading of results. A first call is not counted.

The closed form is timed on rows of full size in memory (benchmarks/speed/synthetic_rows.py),
including their moments: `solve_all` with 256 combinations of the three λ's against `solve` with one
of them, both without the lower bound. For a few settings the loss is compared with that of a
separate `solve`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.harness import PUBLISHED, clocked, command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, shown, table_of, times
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.tower import machine
from jax_unlearn.objective.linear import linear_problem
from jax_unlearn.objective.loss import Problem
from jax_unlearn.objective.problem import problems
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.adam.vmapped import ProblemOf
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.grid import Grid, Setting
from jax_unlearn.solvers.many_settings import solve_all, train_all
from jax_unlearn.solvers.result import Result

RANK = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("sweep", __doc__, rounds=5)
    add = parser.add_argument
    add("--concept", default="astronaut")
    add("--settings", type=int, default=256, help="number of settings, of the grid's 256")
    add("--chunk", type=int, default=50, help="epochs of one compiled scan, and of the short call")
    add("--epochs", type=int, default=200, help="additional epochs of the long call")
    add("--d-in", type=int, default=4096, help="width of the closed form's rows")
    add("--e", type=int, default=2048)
    add("--forget", type=int, default=2500, help="rows")
    add("--preserve", type=int, default=22_500, help="rows")
    add("--checked", type=int, default=8, help="number of settings that are also solved separately")
    options = parser.parse_args(arguments)
    if options.epochs % options.chunk:
        parser.error("--epochs must be a multiple of --chunk")
    config, problem_of = shipped(options.concept)
    common = replace(config, chunk=options.chunk)
    settings = grid().settings(options.settings)
    results = {"machine": machine(), "concept": options.concept, "chunk": options.chunk}
    results |= compare(problem_of, settings, common, options.epochs, options.rounds)
    source = Source(options.d_in, options.e)
    rows = linear_problem(*source.linear_arrays(options.forget, options.preserve))
    shape = {k: getattr(options, k) for k in ("d_in", "e", "forget", "preserve")}
    products = lambdas().settings(options.settings)
    found = closed_form({"linear_fc2": rows}, products, options.checked, options.rounds)
    results["closed_form"] = shape | found
    print(json.dumps(results, indent=1))
    save(options.out, results, plot(results))


def grid() -> Grid:
    """256 settings of one rank, so that all take the same time."""
    return Grid(
        target=("near",),
        seed=tuple(range(8)),
        lambda_forget=(0.65, 1.3, 2.6, 5.2),
        lambda_preserve=(0.4, 1.0, 2.5, 6.0),
        lambda_weight=(1.0,),
        learning_rate=(0.005, 0.01),
        rank=(RANK,),
    )


def lambdas() -> Grid:
    """256 settings that differ in the λ's."""
    return Grid(
        target=("near",),
        seed=(0,),
        lambda_forget=(0.3, 0.65, 0.9, 1.3, 1.9, 2.6, 3.8, 5.2),
        lambda_preserve=(0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 6.0),
        lambda_weight=(0.1, 0.3, 1.0, 3.0),
        learning_rate=(0.01,),
        rank=(RANK,),
    )


def shipped(concept: str) -> tuple[SolverConfig, ProblemOf]:
    """(the demo's config, its problem by target and seed)."""
    config = demo_config(Demo(concept=concept))
    extracted = QwenImages(config, Console(stderr=True)).extract()

    @cache
    def problem_of(target: TargetKind, seed: int) -> Problem:
        objective = config.replace(target=target).objective
        return problems(extracted, objective, seed, held_out=False)[0]

    return config.solver, problem_of


def compare(
    problem_of: ProblemOf,
    settings: Sequence[Setting],
    common: SolverConfig,
    epochs: int,
    rounds: int,
) -> dict[str, Any]:
    """First call and seconds per epoch of both sides; the short call runs `common.chunk` epochs."""
    one, problem = settings[0], problem_of(settings[0].target, 0)

    def train_batch(epochs: int) -> Any:
        return train_all(problem_of, settings, replace(common, epochs=epochs))

    def train_one(epochs: int) -> Any:
        return train(problem, one.config(replace(common, epochs=epochs)))

    sides = {"all": train_batch, "one": train_one}
    first = {name: clocked(partial(side, common.chunk))[0] for name, side in sides.items()}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(turn(side, common.chunk, epochs))
    facts = {name: side_facts(first[name], turns[name]) for name in sides}
    ratios = ratio(*(facts[name]["all_seconds"] for name in sides))
    rows = {name: [len(part.forget), len(part.preserve)] for name, part in problem.items()}
    sequential = len(settings) * facts["one"]["seconds"]
    shape = {"settings": len(settings), "rank": one.rank, "rows": rows}
    return {**shape, **facts, **ratios, "sequential": sequential}


def closed_form(
    problem: Problem, settings: Sequence[Setting], checked: int, rounds: int
) -> dict[str, Any]:
    """Seconds of all settings and of one, timed alternately, and the excess loss of some settings.

    one_by_one is not timed but extrapolated from the moments and iterations of the checked ones.
    """
    common = PUBLISHED

    def solve_one(setting: Setting) -> Result:
        return solve(problem, setting.config(common), bounded=False)

    one, seconds = settings[len(settings) // 2], dict[str, list[float]](one=[], all=[])
    for _ in range(rounds):
        seconds["one"].append(clocked(lambda: solve_one(one))[0])
        taken, trained = clocked(lambda: solve_all(lambda *_: problem, settings, common))
        seconds["all"].append(taken)
        print(f"closed form: one {seconds['one'][-1]:.1f} s, all {taken:.1f} s", flush=True)
    chosen = np.random.default_rng(0).choice(len(settings), checked, replace=False)
    theirs = [solve_one(settings[i]) for i in chosen]
    excess = [
        float(trained[i].terms.sum()) / result.history[-1]["total"] - 1
        for i, result in zip(chosen, theirs, strict=True)
    ]
    parts = {k: median(r.seconds[k] for r in theirs) for k in ("statistics", "iterations")}
    return {
        "settings": len(settings),
        **{name: median(all_seconds) for name, all_seconds in seconds.items()},
        "all_seconds": seconds,
        **ratio(seconds["all"], seconds["one"]),
        "one_by_one": parts["statistics"] + len(settings) * parts["iterations"],
        "checked": checked,
        "excess": max(excess),
    }


def turn(side: Callable[[int], Any], short: int, more: int) -> tuple[float, float]:
    """(seconds per epoch in steady state, seconds of the short call)."""
    few, _ = clocked(lambda: side(short))
    many, _ = clocked(lambda: side(short + more))
    return (many - few) / more, few


def side_facts(first: float, turns: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of a side; compile: seconds by which the first call was slower than later ones."""
    seconds, short = zip(*turns, strict=True)
    facts = {"seconds": median(seconds), "all_seconds": seconds, "first_call": first}
    return {**facts, "short_call": median(short), "compile": first - median(short)}


def plot(results: dict[str, Any]) -> Figure:
    made, sides = figure(columns=2, width=10)
    solved = results["closed_form"]
    closed = solved["one"], solved["all"], solved["one_by_one"]
    adam = results["one"]["seconds"], results["all"]["seconds"], results["sequential"]
    shown = (
        ("closed form, seconds from features in memory", solved["settings"], closed),
        ("Adam, milliseconds an epoch", results["settings"], [1000 * each for each in adam]),
    )
    for axes, (title, number, values) in zip(sides, shown, strict=True):
        bars = axes.bar(["one", f"{number} at once", f"{number} one by one"], values)
        axes.bar_label(bars, fmt="%.3g")
        axes.set(title=title, yscale="log")
    return made


def table(results: dict[str, Any]) -> str:
    """All settings against one: the closed form from features to adapter, and an epoch of Adam."""
    number, one, all_ = results["settings"], results["one"], results["all"]
    refuse_equal("sweep", [("one setting", one), ("all settings", all_)])
    step = 1000 * one["seconds"]
    rows = [
        ["one setting, `train`", shown(step), "1", shown(one["compile"])],
        [
            f"{number} settings at once, `train_all`",
            shown(1000 * all_["seconds"]),
            f"**{times(results['ratio'])}**",
            shown(all_["compile"]),
        ],
        [f"{number} settings one by one", shown(number * step), times(number), "–"],
    ]
    header = ["Adam", "ms an epoch", "to one setting", "compiling, s"]
    solved = results["closed_form"]
    single, counted = solved["one"], solved["one_by_one"]
    closed = [
        ["one setting, `solve`", shown(single), "1"],
        [
            f"{solved['settings']} settings, `solve_all`",
            shown(solved["all"]),
            f"**{times(solved['ratio'])}**",
        ],
        ["one by one, counted up", shown(counted), f"{times(counted / single)}"],
    ]
    heads = ["closed form", "seconds from features in memory", "to one setting"]
    sides = f"{solved['forget']:,} and {solved['preserve']:,} rows"
    note = (
        f"Closed form: {sides} of {solved['d_in']} → {solved['e']}; Adam: {results['concept']}. "
        f"The loss of {solved['checked']} settings is at most {max(0.0, solved['excess']):.0e} "
        f"above that of their own `solve`. Rank {results['rank']}."
    )
    made = caption(results["machine"], "speed.sweep")
    return "\n\n".join([made, table_of(heads, closed), table_of(header, rows), note])


if __name__ == "__main__":
    main()
