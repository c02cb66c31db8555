"""Statistics of synthetic rows that are not stored; `python -m` runs one phase in a process.

The process prints a line of JSON with its peak memory: for reducing the rows to a problem in a file
(gather), or for training on that file (train).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from benchmarks.harness import PUBLISHED
from benchmarks.speed.synthetic_rows import FORGET, PRESERVE, Source
from jax_unlearn.features.statistics import Statistics
from jax_unlearn.features.streaming import StreamingStatistics
from jax_unlearn.objective.linear import LinearProblem, linear_part
from jax_unlearn.objective.targets import Target
from jax_unlearn.solvers.adam.loop import train

FIELDS = ("forget", "residual", "preserve", "forget_rows", "preserve_rows")


def sides(rows: int, share: float) -> tuple[int, int]:
    """(number of forget rows, number of preserve rows)."""
    forget = round(share * rows)
    return forget, rows - forget


def gather(source: Source, forget: int, preserve: int) -> tuple[float, LinearProblem]:
    """(seconds, the problem) of rows in blocks; generating the blocks is not counted."""
    first, kept_forget = gather_side(source, FORGET, forget)
    second, kept_preserve = gather_side(source, PRESERVE, preserve)
    begun = perf_counter()
    target = Target(source.unit_vectors(forget))
    part = linear_part(source.weight, source.bias, kept_forget, target, kept_preserve)
    jax.block_until_ready(part)
    return first + second + perf_counter() - begun, part


def gather_side(source: Source, side: int, rows: int) -> tuple[float, Statistics]:
    streaming = StreamingStatistics(source.d_in, source.output if side == FORGET else None)
    seconds = 0.0
    for image, x in source.blocks(side, rows):
        begun = perf_counter()
        numbers, starts = np.unique(image, return_index=True)
        for number, of_image in zip(numbers, np.split(x, starts[1:]), strict=True):
            streaming.add(int(number), of_image)
        seconds += perf_counter() - begun
    begun = perf_counter()
    summed_up = streaming.finish()
    return seconds + perf_counter() - begun, summed_up


def save_part(path: Path, part: LinearProblem) -> None:
    np.savez(path, **{name: np.asarray(getattr(part, name)) for name in FIELDS})


def load_part(path: Path) -> LinearProblem:
    with np.load(path) as arrays:
        x = {name: arrays[name] for name in FIELDS}
    sides = (jax.numpy.asarray(x[name]) for name in FIELDS[:3])
    return LinearProblem(*sides, *(float(x[name]) for name in FIELDS[3:]))


def peak_mib() -> float:
    """Peak memory of this process in MiB.

    Not ru_maxrss, which includes the memory of the parent at the fork.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.streamed_rows", description=__doc__
    )
    parser.add_argument("phase", choices=["gather", "train"])
    parser.add_argument("file", type=Path)
    for name, default in {"d-in": 1024, "e": 1024, "tokens": 4, "rows": 0, "epochs": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args(arguments)
    before = peak_mib()
    facts = summed_up(options) if options.phase == "gather" else trained(options)
    print(json.dumps({**facts, "before_mib": before, "peak_mib": peak_mib()}))


def summed_up(options: argparse.Namespace) -> dict[str, Any]:
    source = Source(options.d_in, options.e, options.tokens)
    begun = perf_counter()
    seconds, part = gather(source, *sides(options.rows, options.share))
    total = perf_counter() - begun
    save_part(options.file, part)
    kept = {"forget": len(part.forget), "preserve": len(part.preserve)}
    return {"seconds": seconds, "making_rows": total - seconds, "kept": kept}


def trained(options: argparse.Namespace) -> dict[str, Any]:
    config = replace(PUBLISHED, epochs=options.epochs)
    result = train({"linear_fc2": load_part(options.file)}, config)
    return {"seconds": result.seconds["total"]}


if __name__ == "__main__":
    main()
