"""Seconds per step and memory of training on statistics, by the number of rows.

Rows are generated in blocks and not stored (`streaming`); half of them are forget rows (rows and
targets: benchmarks/speed/synthetic_rows.py). A case is rows x forget images. Training uses at most
D_in + E forget and D_in preserve rows; the smallest case already has that many, since a step is
cheaper with fewer rows, or fewer images than E. Streaming keeps up to two float64 rows per forget
image, for every possible target; the last case has more images.

Peak memory is measured in a fresh process for each case and phase, next to its memory after
imports. Steps are timed alternately in this process, on the problems that those processes saved.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import clocked, command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, shown, table_of
from benchmarks.speed.contestants import NAME, Scan
from benchmarks.speed.streamed_rows import load_part, sides
from benchmarks.speed.tower import machine

CASES = ["10000x1250", "30000x1250", "100000x1250", "300000x1250", "1000000x1250", "1000000x12500"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("scaling", __doc__, rounds=7)
    add = parser.add_argument
    add("--cases", nargs="+", default=CASES, help="rows x forget images")
    add("--d-in", type=int, default=1024)
    add("--e", type=int, default=1024)
    add("--share", type=float, default=0.5, help="share of forget rows")
    add("--steps", type=int, default=200, help="steps per timed turn")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{case}.npz" for case in options.cases]
        pairs = zip(options.cases, files, strict=True)
        found = [phases(case, file, options) for case, file in pairs]
        timed = steps(files, options)
    rows = [{**one, **two} for one, two in zip(found, timed, strict=True)]
    shape = {k: getattr(options, k) for k in ("d_in", "e", "share", "steps")}
    results = {"machine": machine(), **shape, "rows": rows}
    results["spread"] = max(r["ratio"] for r in rows) / min(r["ratio"] for r in rows)
    print(json.dumps(results, indent=1))
    save(options.out, results, plot(results))


def phases(case: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Reduce a case's rows to a problem in a file, then train on it, in separate processes."""
    rows, images = map(int, case.split("x"))
    found: dict[str, Any] = {"rows": rows, "images": images}
    given = {k: getattr(options, k) for k in ("d_in", "e", "share")}
    given |= {"rows": rows, "epochs": options.steps}
    given["tokens"] = math.ceil(sides(rows, options.share)[0] / images)
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    for phase in ("gather", "train"):
        call = [sys.executable, "-m", "benchmarks.speed.streamed_rows", phase, str(file), *flags]
        ran = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        found[phase] = json.loads(ran.stdout)
        print(case, phase, found[phase], flush=True)
    return found


def steps(files: Sequence[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per step of each problem, and the ratio to those of the first."""
    runs = [Scan({NAME: load_part(file)}, options.steps) for file in files]
    for run in runs:
        run.begin()
        run.advance(options.steps)
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(options.rounds):
        # Alternating order, so that a machine that slows down affects both ends.
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            taken, _ = clocked(lambda run=runs[i]: run.advance(options.steps))
            seconds[i].append(taken / options.steps)
    return [{"seconds": median(s), "all_seconds": s, **ratio(s, seconds[0])} for s in seconds]


def plot(results: dict[str, Any]) -> Figure:
    """Plot the time of a step, and the memory of both phases."""
    made, (left, right) = figure(columns=2, width=10)
    rows = [row["rows"] for row in results["rows"]]
    steps = [1000 * row["seconds"] for row in results["rows"]]
    left.plot(rows, steps, "o")
    left.set(xscale="log", xlabel="rows", ylabel="milliseconds a step", ylim=(0, 1.2 * max(steps)))
    for phase, label in (("gather", "streaming"), ("train", "training")):
        peaks = [row[phase]["peak_mib"] for row in results["rows"]]
        right.plot(rows, peaks, "o", label=label)
    width = results["d_in"] + results["share"] * results["e"]
    held = [row * 4 * width / 2**20 for row in rows]
    right.plot(rows, held, color="gray", linestyle=":", label="rows and targets, if held")
    right.set(xscale="log", yscale="log", xlabel="rows", ylabel="peak memory, MiB")
    right.legend()
    return made


def table(results: dict[str, Any]) -> str:
    """Time of a step and memory of both phases, one row per case."""
    rows, measured = [], []
    for row in results["rows"]:
        gather, train = row["gather"], row["train"]
        name = f"{row['rows']:,} rows, {row['images']:,} images"
        measured.append((name, row))
        kept = " + ".join(f"{gather['kept'][side]:,}" for side in ("forget", "preserve"))
        counts = [f"{row['rows']:,}", f"{row['images']:,}", kept]
        step = [f"{1000 * row['seconds']:.2f}", f"{row['ratio']:.3f}"]
        memory = [f"{phase['peak_mib']:.0f}" for phase in (train, gather)]
        rows.append([*counts, *step, *memory, shown(gather["seconds"])])
    refuse_equal("scaling", measured)
    header = ["rows", "images to forget", "trained on", "ms a step", "to the first"]
    header += ["peak of training, MiB", "peak of summing, MiB", "summing, s"]
    some = results["rows"][0]["train"]["before_mib"]
    size = f"{results['d_in']} → {results['e']}; a process has {some:.0f} MiB after its imports."
    return f"{caption(results['machine'], 'speed.rows')}\n\n{table_of(header, rows)}\n\n{size}"


if __name__ == "__main__":
    main()
