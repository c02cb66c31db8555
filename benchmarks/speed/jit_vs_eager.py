"""Seconds per step of the same training in PyTorch and JAX, and the gain of each change to it.

Every variant minimises the same loss with Adam from the same start on the same rows, a tenth of
which are forget rows (rows and targets: benchmarks/speed/synthetic_rows.py). They run alternately
in this process; a ratio is the median over the rounds. The objectives after the same number of
steps, computed in float64 from each variant's adapter, must agree, or nothing is written.

The first variant is the strongest baseline that does the same work on the same rows: the whole
algebra of our loss in eager PyTorch (benchmarks/speed/torch_algebra.py), then the same with
torch.compile. The third is the first on the statistics of the rows (`objective.linear.compress`),
the fourth the third with torch.compile, the fifth the published loop, which recomputes the adapted
Linear in every step. The JAX variants use statistics, like `train`: without jit (each jax.numpy
call is dispatched separately), one compiled step called from Python, and the scan over steps of
`train`.

The ratio to the published loop is thus a product of three factors: algebra (published loop to whole
algebra, both on rows), statistics (rows to statistics, both eager) and compiler (eager PyTorch to
our scan, both on statistics: no Python between steps, and XLA's programs instead of PyTorch's). If
there are no more rows than their statistics would have, the rows are kept, and that factor is one
except for noise.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks.harness import clocked, command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, shown, table_of, times
from benchmarks.speed.contestants import (
    ALGEBRA,
    COMPILED,
    COMPILED_ALGEBRA,
    CONFIG,
    JIT,
    NAME,
    OP_BY_OP,
    PUBLISHED,
    SCAN,
    STATISTICS,
    Run,
    Scan,
    Steps,
    algebra_loop,
    compiled_algebra_loop,
    compiled_loop,
    problem_of,
    published_loop,
    statistics_loop,
    statistics_of,
)
from benchmarks.speed.float64_objective import Exact
from benchmarks.speed.streamed_rows import sides
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.torch_loop import Loop
from benchmarks.speed.tower import machine

# Largest relative difference of the variants' objectives.
TOLERANCE = 5e-5
# Steps of one compiled scan.
SCANNED = 25
# Steps shorter than this, in seconds, may be faster on one thread than on all: PyTorch is then
# timed with both in every round, and the faster counts.
SHORT = 1.0

# Functions of (arrays, initial adapter, statistics); the strongest fair baseline comes first.
VARIANTS: Mapping[str, Callable[[Any, Any, Any], Run]] = {
    ALGEBRA: lambda arrays, init, _: algebra_loop(arrays, init),
    COMPILED_ALGEBRA: lambda arrays, init, _: compiled_algebra_loop(arrays, init),
    STATISTICS: lambda _, init, statistics: statistics_loop(statistics, init),
    COMPILED: lambda _, init, statistics: compiled_loop(statistics, init),
    PUBLISHED: lambda arrays, init, _: published_loop(arrays, init),
    OP_BY_OP: lambda _, __, statistics: Steps(statistics, lambda step: step),
    JIT: lambda _, __, statistics: Steps(statistics, jax.jit),
    SCAN: lambda _, __, statistics: Scan(statistics, SCANNED),
}
# Those whose first call compiles.
COMPILING = (COMPILED_ALGEBRA, COMPILED, OP_BY_OP, JIT, SCAN)
# Ratios of the time of a step: of the first variant to the second.
FACTORS = {
    "algebra": (PUBLISHED, ALGEBRA),
    "statistics": (ALGEBRA, STATISTICS),
    "compiler": (STATISTICS, SCAN),
    "together": (PUBLISHED, SCAN),
    "torch.compile": (STATISTICS, COMPILED),
    "torch.compile on rows": (ALGEBRA, COMPILED_ALGEBRA),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("jit_vs_eager", __doc__, rounds=5)
    add = parser.add_argument
    sizes = ["512x512", "4096x2048", "4608x4096"]
    add("--sizes", nargs="+", default=sizes, help="D_in x E of the Linears")
    add(
        "--rows",
        nargs="+",
        type=int,
        default=[50, 2500, 25_000],
        help="forget and preserve rows together",
    )
    add("--steps", type=int, default=3, help="steps until objectives are compared")
    add("--seconds", type=float, default=0.5, help="shortest duration of a turn")
    names = "variants to run, of those in the table"
    add("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], metavar="NAME", help=names)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "load": os.getloadavg(), "cases": []}
    for size in options.sizes:
        for rows in options.rows:
            source = Source(*map(int, size.split("x")))
            results["cases"].append(case(source, rows, options))
            print(json.dumps(results["cases"][-1], indent=1), flush=True)
            # Saved after each case, since later ones take long.
            save(options.out, results, plot(results["cases"]))


def case(source: Source, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size and number of rows."""
    forget, preserve = sides(rows, 0.1)
    facts: dict[str, Any] = {"d_in": source.d_in, "e": source.e}
    facts |= {"forget": forget, "preserve": preserve}
    jax.clear_caches()
    arrays = source.linear_arrays(forget, preserve)
    problem = problem_of(arrays)
    init = CONFIG.init(problem)
    facts["statistics"], statistics = clocked(lambda: statistics_of(problem))
    kept = statistics[NAME]
    facts["kept"] = {"forget": len(kept.forget), "preserve": len(kept.preserve)}
    names = [name for name in VARIANTS if name in options.variants]
    runs = {name: VARIANTS[name](arrays, init, statistics) for name in names}
    return facts | measure(runs, Exact(arrays), options)


def measure(runs: dict[str, Run], exact: Exact, options: argparse.Namespace) -> dict[str, Any]:
    """Time the first call of every variant, then rounds of turns."""
    steps = options.steps
    first, failed = first_calls(runs, steps)
    runs = {name: runs[name] for name in first}
    facts = {"steps": steps, "failed": failed, **agreement(runs, exact)}
    seconds = rounds(runs, options)
    facts["factors"] = factors(seconds)
    facts["variants"] = {
        name: {"seconds": median(taken), "all_seconds": taken, "first_call": first[name]}
        for name, taken in seconds.items()
    }
    for name, variant in facts["variants"].items():
        if name in COMPILING:
            variant["compile"] = max(0.0, first[name] - steps * variant["seconds"])
        if ALGEBRA in seconds:
            variant |= ratio(seconds[ALGEBRA], seconds[name])
    return facts


def first_calls(runs: dict[str, Run], steps: int) -> tuple[dict[str, float], dict[str, str]]:
    """(seconds of the first call of each variant, reasons why variants could not run)."""
    first, failed = {}, {}
    for name, run in runs.items():

        def call(run: Run = run) -> None:
            run.begin()
            run.advance(steps)

        try:
            first[name], _ = clocked(call)
        except Exception as error:
            # Only this variant may fail: it needs a C++ compiler and Python's headers.
            if name not in (COMPILED_ALGEBRA, COMPILED):
                raise
            failed[name] = f"{type(error).__name__}: {error}".strip()[:500]
            print(f"{name} cannot run here: {failed[name]}", flush=True)
    return first, failed


def agreement(runs: dict[str, Run], exact: Exact) -> dict[str, Any]:
    """The objective of every variant, and their relative spread.

    Raises:
        AssertionError: the objectives differ.
    """
    objectives = {name: exact(run.adapter()) for name, run in runs.items()}
    spread = max(objectives.values()) / min(objectives.values()) - 1
    assert spread <= TOLERANCE, f"objectives differ by {spread:.1e}: {objectives}"
    return {"objectives": objectives, "spread": spread}


def rounds(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of every variant in each round."""
    turns = {name: turns_of(run, options.seconds) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name in runs:
            seconds[name].append(min(turn() for turn in turns[name]))
    return seconds


def turns_of(run: Run, seconds: float) -> list[Callable[[], float]]:
    """A variant's turns in a round, each at least `seconds` long, returning seconds per step."""
    taken = unit_seconds(run)
    if isinstance(run, Loop) and taken < SHORT:
        return [turn_of(run, seconds, threads) for threads in sorted({1, run.threads})]
    return [turn_of(run, seconds)]


def turn_of(run: Run, seconds: float, threads: int | None = None) -> Callable[[], float]:
    def use_threads() -> None:
        if isinstance(run, Loop) and threads:
            run.threads = threads

    def turn() -> float:
        use_threads()
        return clocked(lambda: run.advance(steps))[0] / steps

    use_threads()
    steps = run.unit * max(1, ceil(seconds / unit_seconds(run)))
    return turn


def unit_seconds(run: Run) -> float:
    """Seconds of `run.unit` steps, after an unmeasured call that compiles."""
    run.advance(run.unit)
    return clocked(lambda: run.advance(run.unit))[0]


def factors(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """The ratios of FACTORS whose two variants were measured: the median, and every round's."""
    return {
        factor: ratio(seconds[slow], seconds[fast])
        for factor, (slow, fast) in FACTORS.items()
        if slow in seconds and fast in seconds
    }


def plot(cases: list[dict[str, Any]]) -> Figure:
    """Plot the seconds per step of every variant, one colour per case."""
    made, axes = figure(width=10)
    names = [name for name in VARIANTS if any(name in case["variants"] for case in cases)]
    for i, case in enumerate(cases):
        known = [(j, case["variants"][n]) for j, n in enumerate(names) if n in case["variants"]]
        places = [j + (i - len(cases) / 2 + 0.5) * 0.8 / len(cases) for j, _ in known]
        heights = [variant["seconds"] for _, variant in known]
        axes.bar(places, heights, 0.8 / len(cases), label=name_of(case))
    axes.set(yscale="log", ylabel="seconds a step")
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.legend(fontsize=8)
    return made


def name_of(case: dict[str, Any]) -> str:
    return f"{case['forget'] + case['preserve']:,}, {case['d_in']} → {case['e']}"


def table(results: dict[str, Any]) -> str:
    """The three factors, the step of every variant, and the seconds before the steps."""
    cases = {name_of(case): case for case in results["cases"]}
    refuse_equal("jit", [(name, case["variants"]) for name, case in cases.items()])
    names = [name for name in VARIANTS if any(name in case["variants"] for case in cases.values())]
    where = "rows, D_in → E"
    known = [factor for factor in FACTORS if any(factor in c["factors"] for c in cases.values())]
    blocks = [caption(results["machine"], "speed.jit_vs_eager")]
    if "load" in results:
        blocks.append(f"The load of the machine at the start was {results['load'][0]:.1f}.")
    blocks.append(
        table_of(
            [f"{where}: times as fast, by", *known],
            [[name, *(factor_cell(case, f) for f in known)] for name, case in cases.items()],
        )
    )
    blocks.append(
        table_of(
            [f"{where}: ms a step", *names],
            [[name, *(step_cell(case, n) for n in names)] for name, case in cases.items()],
        )
    )
    compiling = [name for name in names if name in COMPILING]
    blocks.append(
        table_of(
            [f"{where}: seconds before", "statistics", "rows kept", *compiling],
            [[name, *before_cells(case, compiling)] for name, case in cases.items()],
        )
    )
    reasons = {name: why for case in cases.values() for name, why in case["failed"].items()}
    blocks += [f"{name} could not run: {why.splitlines()[0]}" for name, why in reasons.items()]
    return "\n\n".join([*blocks, note(results["cases"])])


def note(cases: list[dict[str, Any]]) -> str:
    spread = max(case["spread"] for case in cases)
    return (
        f"In brackets: times as fast as *{ALGEBRA}*. *together* is from the published loop to "
        "JAX's scan; *torch.compile* stands beside *compiler*, from the same eager PyTorch. "
        "Where a step is short, PyTorch has one thread or all, whichever is faster in a round. "
        f"Objectives after {cases[0]['steps']} steps differ by {spread:.0e} at most."
    )


def factor_cell(case: dict[str, Any], factor: str) -> str:
    found = case["factors"].get(factor)
    return f"**{times(found['ratio'])}**" if found else "–"


def step_cell(case: dict[str, Any], name: str) -> str:
    if name not in case["variants"]:
        return "–"
    found = case["variants"][name]
    step = shown(1000 * found["seconds"])
    return f"{step} ({times(found['ratio'])})" if "ratio" in found else step


def before_cells(case: dict[str, Any], names: Sequence[str]) -> list[str]:
    kept = " + ".join(f"{case['kept'][side]:,}" for side in ("forget", "preserve"))
    known = case["variants"]
    compiling = [shown(known[name]["compile"]) if name in known else "–" for name in names]
    return [shown(case["statistics"]), kept, *compiling]


if __name__ == "__main__":
    main()
