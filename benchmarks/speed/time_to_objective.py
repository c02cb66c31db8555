"""Seconds from features in memory to +1 %, +0.1 % and +0.01 % of the best objective known.

The best objective known is the lowest that the closed form from several starts or Adam with any of
the learning rates reaches, taken in float64 from the rows (benchmarks/speed/float64_objective.py).
Every contestant is timed until its own objective first reaches the goal: the whole algebra of our
loss in eager PyTorch on the rows (the strongest fair baseline, benchmarks/speed/torch_algebra.py),
the same on the statistics of the rows, the published loop, our Adam on statistics, and our closed
form. They run alternately in this process. Rows and targets: benchmarks/speed/synthetic_rows.py.

The clock starts with rows, target and Linear as float32 arrays, and includes each contestant's
preparation: original outputs, residual, statistics, moments. Compilation is reported in a separate
column; every program is compiled before the clock starts. PyTorch's objective is read after every
step, our Adam's after every scan of --scan steps, and the closed form's after every iteration. The
closed form returns its adapter a little later (`returned`), once it has converged; it computes no
lower bound.

Each goal uses the constant learning rate of --rates that reaches it in the fewest steps. All four
Adam contestants follow the same trajectory for a given rate, except for rounding: same start, same
loss, same full batch. The rates are therefore tuned once, with our scan on statistics, and used for
all of them. The seconds of the tuning are reported separately and count for no contestant.

Only a few epochs of the published loop are timed (--published-epochs). Its time is extrapolated as
its preparation plus the median epoch times the number of epochs that the whole algebra needed on
the same rows; the objectives of both must agree in the timed epochs. With 0 it is run to the goals.
"""

import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, shown, table_of, times
from benchmarks.speed.contestants import ALGEBRA
from benchmarks.speed.race import ADAM, CLOSED, GAPS, Race, Turn
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.tower import machine

# The first rate that reaches the goal limits the epochs of the others.
RATES = (0.003, 0.01, 0.001, 0.03, 0.1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("time_to_objective", __doc__, rounds=2)
    add = parser.add_argument
    add("--d-in", type=int, default=4096)
    add("--e", type=int, default=2048)
    add("--forget", type=int, default=1250, help="rows")
    add("--preserve", type=int, default=11_250, help="rows")
    add("--tokens", type=int, default=50, help="rows per image")
    add("--epochs", type=int, default=1000, help="limit of every training")
    add(
        "--published-epochs",
        type=int,
        default=4,
        help="epochs of the published loop that are timed; 0: all",
    )
    add("--rates", type=float, nargs="+", default=RATES, help="learning rates to choose from")
    add(
        "--starts",
        type=int,
        default=3,
        help="starts of the closed form, for the best objective known",
    )
    add("--scan", type=int, default=10, help="steps of our Adam between readings")
    options = parser.parse_args(arguments)
    source = Source(options.d_in, options.e, options.tokens)
    race = Race(source.linear_arrays(options.forget, options.preserve), options)
    names = ("d_in", "e", "forget", "preserve", "tokens", "epochs", "scan")
    results = {"machine": machine(), **{k: getattr(options, k) for k in names}, **known(race)}
    print(json.dumps(results, indent=1), flush=True)
    results["contestants"] = run(race, options.rounds)
    print(json.dumps(results["contestants"], indent=1))
    save(options.out, results, plot(results))


def known(race: Race) -> dict[str, Any]:
    """The goals and their learning rates, which are found before the clock starts."""
    tuning = race.tuning
    return {
        "initial": race.initial,
        "best": race.best,
        "goals": race.goals,
        "tuning": {
            "grid": sorted(tuning.histories),
            "on": "Adam on statistics (JAX); all Adam contestants descend the same trajectory",
            "seconds": tuning.seconds,
            # A rate is stopped once another has reached the closest goal in as many steps.
            "steps": {rate: len(history) - 1 for rate, history in tuning.histories.items()},
            "epochs": tuning.epochs(race.goals),
            "chosen": race.rates,
        },
    }


def run(race: Race, rounds: int) -> dict[str, Any]:
    """Time all contestants alternately."""
    sides = race.sides()
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(side())
            print(f"{name}: {turns[name][-1].seconds}", flush=True)
    return {name: over(turns[name], turns[ALGEBRA], name, race) for name in sides}


def over(turns: list[Turn], baseline: list[Turn], name: str, race: Race) -> dict[str, Any]:
    """A contestant's medians over the rounds, and its speed relative to the baseline."""
    seconds, ratios = {}, {}
    for gap in GAPS:
        own, theirs = ([turn.seconds[gap] for turn in side] for side in (turns, baseline))
        seconds[gap] = None if None in own else median(own)
        ratios[gap] = None if None in [*own, *theirs] else ratio(theirs, own)
    return {
        "seconds": seconds,
        "all_seconds": {gap: [turn.seconds[gap] for turn in turns] for gap in GAPS},
        "ratio": ratios,
        "epochs": turns[-1].epochs,
        "preparation": median(turn.preparation for turn in turns),
        "compile": race.compile.get(name, 0.0),
        "learning_rates": None if name == CLOSED else race.rates,
        "reading_error": race.errors.get(name),
        **turns[-1].facts,
        **medians(turns, ("returned", "seconds_per_epoch")),
    }


def medians(turns: list[Turn], names: Sequence[str]) -> dict[str, float]:
    """Medians over the rounds of a contestant's other facts."""
    known = [name for name in names if name in turns[-1].facts]
    return {name: median(turn.facts[name] for turn in turns) for name in known}


def plot(results: dict[str, Any]) -> Figure:
    """Plot the distance to the best objective known against the seconds, at the three goals."""
    made, axes = figure()
    for name, found in results["contestants"].items():
        there = [(found["seconds"][gap], 100 * share) for gap, share in GAPS.items()]
        points = [(seconds, share) for seconds, share in there if seconds is not None]
        label = f"{name}, extrapolated" if found.get("extrapolated") else name
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="seconds from features in memory")
    axes.set_ylabel("% above the best objective known")
    axes.legend(fontsize=8)
    return made


def table(results: dict[str, Any]) -> str:
    """Seconds of every contestant to each goal."""
    found = results["contestants"]
    refuse_equal("objective", [(name, one["all_seconds"]) for name, one in found.items()])
    rows = [
        [
            label(name, one),
            *(cell(one, gap) for gap in GAPS),
            shown(one["preparation"]),
            shown(one["compile"]) if name in (ADAM, CLOSED) else "–",
        ]
        for name, one in found.items()
    ]
    header = ["seconds from features in memory to", *GAPS, "preparation in them", "compiling"]
    made = caption(results["machine"], "speed.time_to_objective")
    return f"{made}\n\n{table_of(header, rows)}\n\n{note(results)}"


def label(name: str, found: dict[str, Any]) -> str:
    if not found.get("extrapolated"):
        return name
    each = f"{shown(found['seconds_per_epoch'])} s each"
    return f"{name} (extrapolated from {found['timed_epochs']} epochs a round, {each})"


def cell(found: dict[str, Any], gap: str) -> str:
    if found["seconds"][gap] is None:
        return "not reached"
    taken = shown(found["seconds"][gap])
    return f"{taken} (**{times(found['ratio'][gap]['ratio'])}**)" if found["ratio"][gap] else taken


def note(results: dict[str, Any]) -> str:
    best, tuning, found = results["best"], results["tuning"], results["contestants"]
    chosen = ", ".join(f"{rate} for {gap}" for gap, rate in tuning["chosen"].items())
    steps = ", ".join(str(found[ADAM]["epochs"][gap] or "–") for gap in GAPS)
    errors = [one["reading_error"] for one in found.values() if one["reading_error"] is not None]
    return " ".join(
        [
            f"Rows to forget and preserve: {results['forget']:,} and {results['preserve']:,} of "
            f"{results['d_in']} → {results['e']}.",
            f"Best objective known: {best['value']:.3f} ({best['by']}); at the start "
            f"{results['initial']:.3f}.",
            f"In brackets: times as fast as *{ALGEBRA}*.",
            f"Learning rates, of {', '.join(map(str, tuning['grid']))}: {chosen}; tuning them on "
            f"statistics took {tuning['seconds']:.0f} s, which are in no row.",
            f"Our Adam is there after {steps} steps at most; *not reached* is after "
            f"{results['epochs']:,}.",
            f"The closed form returns its adapter after {shown(found[CLOSED]['returned'])} s, with "
            "its last digits.",
            f"Contestants' own objectives are those in float64 from the rows to {max(errors):.0e}.",
        ]
    )


if __name__ == "__main__":
    main()
