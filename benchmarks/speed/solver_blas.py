"""The linear algebra of `near` and of `stand_in` against the machine's limit for a product.

The limit is the rate of NumPy's product of two 4096 × 4096 matrices in float64, which is timed in
every round beside the parts. Operations (a multiplication and an addition are two) are counted by
formula, for a Linear D → E, n images to keep, m to forget and as many of the stand-in, and the
k components of the transport:

    Gram matrix          n D²                                    one triangle of a symmetric product
    factor               D³ / 3
    solution             D² E                                    L⁻¹ C
    Gram and factor      m D² + D³ / 3                           of stand_in's ridge regression
    solution             2 D² E                                  H⁻¹ C
    round                2 D² E                                  its solution
                         + 4 m D E + 4 m E k + m k² + 2 m k²     image means
                         + 2 D² E + 6 D E k + 4 D k²             tokens
                         + 2 · 11 k³                             both transports

An eigendecomposition counts as 4 k³. A round is the time between two calls of the fit's `progress`.
"""

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import clocked, command, ratio, write
from benchmarks.markdown import caption, refuse_equal, table_of
from benchmarks.speed.stand_in_size import RANK, deviations, rows_of
from benchmarks.speed.synthetic_rows import FORGET, PRESERVE, Source
from benchmarks.speed.tower import machine
from benchmarks.speed.where_to_solve import on_host
from jax_unlearn.features.gram import gram
from jax_unlearn.features.stand_in import TokenMoments
from jax_unlearn.objective.stand_in import StandInRows
from jax_unlearn.solvers import stand_in
from jax_unlearn.solvers.stand_in import Ridge, fit_stand_in

LIMIT = "product of NumPy"
# Rounds of transport of a fit; the time of the first also has what comes before it.
FITTED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("solver_blas", __doc__, rounds=3)
    parser.add_argument("--d-in", type=int, default=4096)
    parser.add_argument("--e", type=int, default=2048)
    parser.add_argument("--preserve", type=int, default=25_000)
    parser.add_argument("--forget", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=4096, help="size of the product")
    options = parser.parse_args(arguments)
    source = Source(options.d_in, options.e, tokens=1)
    keep = source.rows(PRESERVE, options.preserve)
    forget = source.rows(FORGET, options.forget)
    load, random = os.getloadavg()[0], np.random.default_rng(0)
    r_f, r_g, r_p = deviations(keep)
    moments = TokenMoments.of(r_f, r_g, r_g, r_p)
    rows = rows_of(source, keep, forget, keep[: len(forget)], moments)
    cross = np.asfortranarray(random.normal(size=(options.d_in, options.e)))
    near = on_host(keep, gram(keep) / len(keep) + np.eye(options.d_in), cross)
    square = random.normal(size=(options.limit, options.limit))
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        taken = {LIMIT: clocked(lambda: square @ square)[0]}
        taken |= {f"near: {name}": clocked(call)[0] for name, call in near.items()}
        for name, own in (taken | of_stand_in(rows)).items():
            seconds.setdefault(name, []).append(own)
    shape = {k: getattr(options, k) for k in ("d_in", "e", "preserve", "forget", "limit")}
    counts = operations(options.d_in, options.e, options.preserve, options.forget)
    results = {
        "machine": machine(),
        "load": load,
        "shape": shape,
        "limit": rates(2 * options.limit**3, seconds[LIMIT]),
        "parts": compared(counts, seconds, 2 * options.limit**3),
    }
    print(json.dumps(results, indent=1))
    write(options.out, results)


def of_stand_in(rows: StandInRows) -> dict[str, float]:
    """Seconds of each part of a fit; of a round, the median."""
    factored, ridge = clocked(lambda: Ridge([rows], 1.0))
    solved, _ = clocked(lambda: ridge.change(ridge.b))
    times: list[float] = []
    fit_stand_in([{"w": rows}], RANK, 1.0, FITTED, lambda _: times.append(perf_counter()))
    return {
        "stand_in: Gram and factor": factored,
        "stand_in: solution": solved,
        "stand_in: round": median(end - start for start, end in pairwise(times)),
    }


def operations(d: int, e: int, n: int, m: int) -> dict[str, float]:
    """Floating-point operations of each part (see the module)."""
    k = min(e, stand_in.COMPONENTS)
    means = 4 * m * d * e + 4 * m * e * k + 3 * m * k**2
    tokens = 2 * d**2 * e + 6 * d * e * k + 4 * d * k**2
    return {
        "near: Gram matrix": n * d**2,
        "near: factor": d**3 / 3,
        "near: solution": d**2 * e,
        "stand_in: Gram and factor": m * d**2 + d**3 / 3,
        "stand_in: solution": 2 * d**2 * e,
        "stand_in: round": 2 * d**2 * e + means + tokens + 2 * 11 * k**3,
    }


def rates(count: float, seconds: list[float]) -> dict[str, Any]:
    """Medians of the time and of the operations a second, in 10⁹."""
    rate = count / median(seconds) / 1e9
    return {"operations": count, "seconds": median(seconds), "all_seconds": seconds, "rate": rate}


def compared(
    counts: dict[str, float], seconds: dict[str, list[float]], limit: float
) -> dict[str, dict[str, Any]]:
    """Each part's rate, and its share of the limit's in the same round."""
    return {
        # Seconds that the operations would take at the limit, to those they took.
        name: {**rates(count, own), **ratio([s * count / limit for s in seconds[LIMIT]], own)}
        for name, count in counts.items()
        for own in [seconds[name]]
    }


def table(results: dict[str, Any]) -> str:
    """Seconds, operations and share of the limit of each part."""
    facts, limit, parts = results["shape"], results["limit"], results["parts"]
    refuse_equal("solver blas", list(parts.items()))
    rows = [
        [
            name.replace("near", "`near`").replace("stand_in", "`stand_in`"),
            f"{part['operations'] / 1e9:,.1f}",
            f"{part['seconds']:.2f}",
            f"{part['rate']:.1f}",
            f"**{part['ratio']:.0%}** ({min(part['ratios']):.0%}–{max(part['ratios']):.0%})",
        ]
        for name, part in parts.items()
    ]
    made = caption(results["machine"], "speed.solver_blas")
    shape = (
        f"{facts['d_in']} → {facts['e']}, {facts['preserve']:,} images to keep and "
        f"{facts['forget']:,} to forget. A product of {facts['limit']}² reaches "
        f"{limit['rate']:.1f} · 10⁹ operations a second; the load at the start was "
        f"{results['load']:.1f}."
    )
    header = ["part", "10⁹ operations", "seconds", "10⁹ a second", "of the limit (range)"]
    return f"{made}\n\n{shape}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
