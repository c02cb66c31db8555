"""Shared parts of the benchmarks: command line, timing, ratios, JSON and plots."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from jax_unlearn.runs.settings.presets import FAITHFUL
from jax_unlearn.runtime.used_if import leaf_fields
from jax_unlearn.solvers.config import SolverConfig

RESULTS = Path(__file__).parent / "results"
# The published scheme's constants, on whose loss the solvers are compared.
OWN = leaf_fields(SolverConfig)
PUBLISHED = SolverConfig(**{name: value for name, value in FAITHFUL.items() if name in OWN})


def command(name: str, doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        name: name of the module below `benchmarks`.
        doc: its docstring.
        rounds: default number of rounds, for benchmarks with rounds.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if rounds:
        help_text = "number of rounds, in each of which every variant is timed"
        parser.add_argument("--rounds", type=int, default=rounds, help=help_text)
    out = RESULTS / f"{name}.json"
    parser.add_argument(
        "--out", type=Path, default=out, help="JSON file; a plot is written next to it"
    )
    return parser


def clocked(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result of `run`)."""
    begun = time.perf_counter()
    value = run()
    return time.perf_counter() - begun, value


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """The ratio theirs / ours: its median over the rounds, and its value in each round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"ratio": median(ratios), "ratios": ratios}


def save(out: Path, results: dict[str, Any], plot: Figure) -> None:
    write(out, results)
    plot.savefig(out.with_suffix(".png"), dpi=150)


def write(out: Path, results: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def figure(columns: int = 1, width: float = 8, height: float = 4.5) -> tuple[Figure, Any]:
    """A figure and its axes, side by side."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(1, columns)
