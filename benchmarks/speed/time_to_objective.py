"""Seconds from features in memory to the objective that the published loop ends at.

The clock of ours starts at float32 arrays of rows, target and Linear. It holds the residual, the
statistics and, for Adam on statistics, tracing and compiling, which every round does anew
(`jax.clear_caches`). For the closed form it stops when `solve` returns; beside it is the time of
the first iteration whose objective is no higher. For Adam it stops after the first chunk of epochs
that has reached the objective. Rows and targets: benchmarks/speed/synthetic_rows.py.

PyTorch's objective is the lowest of its epochs. Fewer of them are timed (--torch-epochs), without
its preparation, and the median is multiplied. What it would reach comes from all epochs of the same
Adam through JAX on the rows themselves (`train` would take their statistics), whose objectives must
agree with PyTorch's in the epochs that PyTorch does run. PyTorch's are taken in float64 from what
it has trained (benchmarks/speed/float64_objective.py); how far each of the three final readings is
from that is told beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import clocked, command, figure, ratio, save
from benchmarks.speed.float64_objective import Exact
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.torch_loop import Loop, Rows, published
from benchmarks.speed.tower import machine
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.linear import compress, linear_problem
from jax_unlearn.objective.loss import Problem
from jax_unlearn.solvers.adam.loop import run_chunk, start, train
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import TrainConfig

NAME = "linear_fc2"
# A relative difference of PyTorch's and our losses in the same epoch.
TOLERANCE = 1e-4


@dataclass
class Clock:
    """Calls of `progress` with the seconds since the start: [seconds, epoch, objective]."""

    begun: float = field(default_factory=perf_counter)
    laps: list[tuple[float, int, float]] = field(default_factory=list)

    def __call__(self, epoch: int, row: dict[str, Any]) -> None:
        self.laps.append((perf_counter() - self.begun, epoch, float(row["total"])))


class Race:
    """Rows in memory, and the run on them that says how far PyTorch would come.

    Args:
        arrays: weight, bias, forget, target and preserve.
        timed: how many of PyTorch's epochs.
    """

    def __init__(self, arrays: tuple[np.ndarray, ...], config: TrainConfig, timed: int) -> None:
        self.arrays, self.config, self.timed = arrays, config, min(timed, config.epochs)
        self.exact = Exact(arrays)
        problem = {NAME: linear_problem(*arrays)}
        init = config.init(problem)
        self.known, self.reference = on_rows(problem, config)
        self.goal = min(self.known)
        loss = published(Rows.of(*arrays), init.scale)
        self.loop = Loop(loss, init, config.learning_rate)

    def torch(self) -> dict[str, Any]:
        """Seconds an epoch, and of all of them.

        Raises:
            AssertionError: an epoch's objective is not the reference's.
        """
        self.loop.begin()
        seconds, adapters = [], []
        for _ in range(self.timed):
            adapters.append(self.loop.adapter())
            seconds.append(clocked(self.loop.step)[0])
        found = np.array([self.exact(adapter) for adapter in adapters])
        spread = float(np.max(np.abs(found / self.known[: self.timed] - 1)))
        assert spread <= TOLERANCE, f"PyTorch's objectives are off by {spread:.1e}: {found}"
        epoch = median(seconds)
        whole = epoch * self.config.epochs if self.timed < self.config.epochs else sum(seconds)
        return {"epoch": epoch, "seconds": whole, "spread": spread, "all_seconds": seconds}

    def closed_form(self) -> dict[str, Any]:
        jax.clear_caches()
        clock = Clock()
        result = solve({NAME: linear_problem(*self.arrays)}, self.config, progress=clock)
        seconds = perf_counter() - clock.begun
        first = next((lap[0] for lap in clock.laps if lap[2] <= self.goal), None)
        found = float(result.history[result.epoch]["total"])
        facts = {"seconds": seconds, "first": first, "reached": found <= self.goal}
        facts |= {"objective": found, "iterations": len(clock.laps), "parts": result.seconds}
        facts |= {"lower_bound": result.lower_bound, "laps": clock.laps}
        return {**facts, "reading_error": found / self.exact(result.adapter) - 1}

    def adam(self) -> dict[str, Any]:
        """A few more epochs than the published loop has: rounding may cost some of the last."""
        jax.clear_caches()
        clock = Clock()
        problem = compress({NAME: linear_problem(*self.arrays)})
        jax.block_until_ready(problem)
        prepared, epochs = perf_counter() - clock.begun, self.config.epochs
        longer = replace(self.config, epochs=epochs + max(self.config.chunk, epochs // 10))
        result = train(problem, longer, progress=clock)
        totals = np.array([row["total"] for row in result.history])
        reached = bool((totals <= self.goal).any())
        epoch = int((totals <= self.goal).argmax()) if reached else longer.epochs
        seconds, last, _ = next(lap for lap in clock.laps if lap[1] >= epoch)
        facts = {"seconds": seconds, "reached": reached, "epoch": epoch, "preparation": prepared}
        facts |= {"objective": float(totals[: last + 1].min()), "parts": result.seconds}
        facts |= {"laps": clock.laps}
        return {**facts, "reading_error": float(totals.min()) / self.exact(result.adapter) - 1}


def on_rows(problem: Problem, config: TrainConfig) -> tuple[list[float], LoraAdapter]:
    """(The objective from the start on, the best adapter) of `train` without its statistics."""
    weights = config.loss_weights()
    state, terms = start(config.init(problem), problem, weights)
    totals = [float(terms.sum())]
    for first in range(0, config.epochs, config.chunk):
        length = min(config.chunk, config.epochs - first)
        state, terms = run_chunk(state, problem, weights, config.learning_rate, length=length)
        totals += np.asarray(terms).sum(axis=1).tolist()
    return totals, state.best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("time_to_objective", __doc__, rounds=3)
    add = parser.add_argument
    add("--d-in", type=int, default=4096)
    add("--e", type=int, default=2048)
    add("--forget", type=int, default=2500, help="rows")
    add("--preserve", type=int, default=22_500, help="rows")
    add("--tokens", type=int, default=50, help="rows an image")
    add("--epochs", type=int, default=2000, help="of the published loop")
    add("--torch-epochs", type=int, default=20, help="so many of them are timed in every round")
    options = parser.parse_args(arguments)
    source = Source(options.d_in, options.e, options.tokens)
    arrays = source.linear_arrays(options.forget, options.preserve)
    config = TrainConfig(epochs=options.epochs, chunk=min(100, options.epochs))
    race = Race(arrays, config, options.torch_epochs)
    print(f"objective after {config.epochs} epochs on the rows: {race.goal:.4f}", flush=True)
    shape = {k: getattr(options, k) for k in ("d_in", "e", "forget", "preserve", "tokens")}
    results = {"machine": machine(), **shape, **run(race, options.rounds)}
    print(json.dumps(results, indent=1))
    save(options.out, results, plot(results))


def run(race: Race, rounds: int) -> dict[str, Any]:
    """PyTorch, the closed form and Adam on statistics in turns."""
    sides = {"torch": race.torch, "closed_form": race.closed_form, "adam": race.adam}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(side())
            print(f"{name}: {turns[name][-1]['seconds']:.1f} s", flush=True)
    theirs = {
        "timed_epochs": race.timed,
        "extrapolated": race.timed < race.config.epochs,
        "seconds_per_epoch": median(turn["epoch"] for turn in turns["torch"]),
        "seconds": median(turn["seconds"] for turn in turns["torch"]),
        "rounds": turns["torch"],
    }
    facts = {"epochs": race.config.epochs, "initial": race.known[0], "goal": race.goal}
    facts["goal_reading_error"] = race.goal / race.exact(race.reference) - 1
    facts["torch"] = theirs
    return facts | {name: over(turns["torch"], turns[name]) for name in ("closed_form", "adam")}


def over(torch: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """The last round's facts with the median seconds, and the ratio to PyTorch's."""
    whole, seconds = ([one["seconds"] for one in side] for side in (torch, ours))
    facts = {**ours[-1], "reached": all(one["reached"] for one in ours)}
    facts |= {"seconds": median(seconds), "all_seconds": seconds, **ratio(whole, seconds)}
    if all(one.get("first") for one in ours):
        firsts = [one["first"] for one in ours]
        facts |= {"first": median(firsts), "all_first": firsts, "to_first": ratio(whole, firsts)}
    return facts


def plot(facts: dict[str, Any]) -> Figure:
    """The objective over the seconds; PyTorch's at its end."""
    made, axes = figure()
    shown = {"closed_form": "closed form", "adam": "Adam on statistics"}
    for key, label in shown.items():
        seconds, _, objectives = zip(*facts[key]["laps"], strict=True)
        axes.plot(seconds, objectives, marker=".", label=label)
    axes.axhline(facts["goal"], color="gray", linestyle=":")
    end = facts["torch"]["seconds"]
    label = "PyTorch eager" + (", extrapolated" if facts["torch"]["extrapolated"] else "")
    axes.plot([end], [facts["goal"]], "k*", markersize=12, label=label)
    axes.set(xscale="log", xlabel="seconds from features in memory", ylabel="objective")
    axes.legend()
    return made


if __name__ == "__main__":
    main()
