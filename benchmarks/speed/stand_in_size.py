"""Seconds and memory of the target stand_in at real widths, beside the closed form of near.

Rows are synthetic (`synthetic_rows`): image means of the images to forget, of as many stand-in
images and of the images to keep, and 16 tokens of each of the former. All are made before the
clock starts; matching and solving are timed, for one projector.
"""

import json
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import clocked, command, write
from benchmarks.markdown import caption, table_of
from benchmarks.speed.synthetic_rows import FORGET, PRESERVE, Source
from benchmarks.speed.tower import machine
from jax_unlearn.features.gram import gram
from jax_unlearn.features.stand_in import TokenMoments
from jax_unlearn.features.token_sample import TOKENS
from jax_unlearn.objective.linear import linear_problem
from jax_unlearn.objective.stand_in import StandInRows, match
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.stand_in import ROUNDS, fit_stand_in, with_ones

RANK = 32


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("stand_in_size", __doc__)
    parser.add_argument("--d-in", type=int, default=4096)
    parser.add_argument("--e", type=int, default=2048)
    parser.add_argument("--preserve", type=int, default=25_000)
    parser.add_argument("--forget", type=int, default=1000)
    options = parser.parse_args(arguments)
    source = Source(options.d_in, options.e, tokens=1)
    keep = source.rows(PRESERVE, options.preserve)
    forget = source.rows(FORGET, options.forget)
    stand_in = keep[: options.forget]
    r_f, r_g, r_p = deviations(keep)
    outputs = [source.output(x) for x in (forget, stand_in)]
    seconds, matched = clocked(lambda: match([outputs[0]], [outputs[1]]))
    taken = {"match": seconds}
    taken["moments of tokens"], moments = clocked(lambda: TokenMoments.of(r_f, r_g, r_g, r_p))
    rows = rows_of(source, keep, forget, stand_in[matched], moments)
    taken[f"fit, {ROUNDS} rounds"], result = clocked(lambda: fit_stand_in([{"w": rows}], RANK, 1.0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    target = outputs[0] + (stand_in - forget).mean(axis=0) @ source.weight.T
    problem = {"w": linear_problem(source.weight, source.bias, forget, target, keep)}
    near, _ = clocked(lambda: solve(problem, SolverConfig(rank=1)))
    start, end = (row["forget"] for row in result.history)
    results = {
        "machine": machine(),
        "shape": {k: getattr(options, k) for k in ("d_in", "e", "preserve", "forget")},
        "seconds": taken,
        "near": near,
        "peak": peak,
        "distance": {"before": start, "after": end},
    }
    print(json.dumps(results, indent=1))
    write(options.out, results)


def deviations(keep: np.ndarray) -> list[np.ndarray]:
    """Deviations of tokens: of images to forget, of their stand-ins and of images to keep."""
    random = np.random.default_rng(1)
    return [random.permutation(keep)[: TOKENS * 1000] * np.float32(0.5) for _ in range(3)]


def rows_of(
    source: Source, keep: np.ndarray, forget: np.ndarray, goal: np.ndarray, moments: TokenMoments
) -> StandInRows:
    """What the fit needs; the first images to keep are those of the stand-in."""
    ones = with_ones(keep).astype(np.float32)
    return StandInRows(
        source.weight,
        source.bias,
        forget,
        goal,
        keep[: len(forget)],
        gram(ones) / len(ones),
        len(ones),
        moments,
    )


def table(results: dict[str, Any]) -> str:
    """The parts of the fit, and the closed form of near, with its statistics, on the same rows."""
    facts = results["shape"]
    rows = [[name, f"{seconds:.1f}"] for name, seconds in results["seconds"].items()]
    rows.append(["together", f"{sum(results['seconds'].values()):.1f}"])
    rows.append(["`near` in closed form", f"{results['near']:.1f}"])
    shape = (
        f"One projector, {facts['d_in']} → {facts['e']}: {facts['forget']:,} images to forget, as "
        f"many of the stand-in, {facts['preserve']:,} to keep; peak memory of the process "
        f"{results['peak'] / 2**30:.1f} GiB, with the rows."
    )
    head = caption(results["machine"], "speed.stand_in_size")
    return f"{head}\n\n{shape}\n\n{table_of(['part', 'seconds'], rows)}"


if __name__ == "__main__":
    main()
