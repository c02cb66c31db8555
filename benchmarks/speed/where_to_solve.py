"""Where the closed form should do its linear algebra: NumPy and SciPy on the host, or JAX.

`solve` needs a Gram matrix of the rows (once), and in an iteration a factorisation of
H = G_f + a G_p + b I and its solution for C_f (`ridge.Ridge`). Each is timed alternately in float64
on both, without the transfers that JAX on another device would need, and in float32 on JAX, whose
precision does not suffice (`ridge`), but which shows the largest gain of a device without float64.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from scipy.linalg import blas, cholesky

from benchmarks.harness import clocked, command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, shown, table_of, times
from benchmarks.speed.tower import machine
from jax_unlearn.features.gram import gram

HOST, DEVICE, SINGLE = "host, float64", "JAX, float64", "JAX, float32"

Parts = dict[str, Callable[[], Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("where_to_solve", __doc__, rounds=5)
    parser.add_argument("--d-in", type=int, default=4096)
    parser.add_argument("--e", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=25_000)
    options = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    rows = random.normal(size=(options.rows, options.d_in)).astype(np.float32)
    cross = np.asfortranarray(random.normal(size=(options.d_in, options.e)))
    h = gram(rows) / options.rows + np.eye(options.d_in)
    with jax.enable_x64(True):
        sides = {
            HOST: on_host(rows, h, cross),
            DEVICE: on_device(rows, h, cross, jnp.float64),
            SINGLE: on_device(rows, h, cross, jnp.float32),
        }
        # The first calls compile.
        first = {name: {k: clocked(call)[0] for k, call in sides[name].items()} for name in sides}
        seconds = turns(sides, options.rounds)
    shape = {k: getattr(options, k) for k in ("d_in", "e", "rows")}
    facts = {"machine": machine(), "device": jax.devices()[0].device_kind, **shape}
    results = {**facts, "first_call": first, "parts": compared(seconds)}
    print(json.dumps(results, indent=1))
    save(options.out, results, plot(results["parts"]))


def on_host(rows: np.ndarray, h: np.ndarray, cross: np.ndarray) -> Parts:
    lower = cholesky(h, lower=True)
    return {
        "Gram matrix": lambda: gram(rows),
        "factor": lambda: cholesky(h.T, lower=True, check_finite=False),
        "solution": lambda: blas.dtrsm(1.0, lower, cross, lower=True),
    }


def on_device(rows: np.ndarray, h: np.ndarray, cross: np.ndarray, dtype: Any) -> Parts:
    x, g, c = (jnp.asarray(array, dtype) for array in (rows, h, cross))
    factor = jax.jit(jnp.linalg.cholesky)
    lower = factor(g)
    solve = jax.jit(partial(jax.scipy.linalg.solve_triangular, lower=True))
    return {
        "Gram matrix": waiting(jax.jit(lambda x: jnp.matmul(x.T, x, precision="highest")), x),
        "factor": waiting(factor, g),
        "solution": waiting(solve, lower, c),
    }


def waiting(function: Callable[..., Array], *arrays: Array) -> Callable[[], Array]:
    return lambda: jax.block_until_ready(function(*arrays))


def turns(sides: dict[str, Parts], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each part on each side, in each round."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for part in sides[HOST]:
            for name, side in sides.items():
                of_part = seconds.setdefault(part, {}).setdefault(name, [])
                of_part.append(clocked(side[part])[0])
    return seconds


def compared(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Medians, and the ratio of JAX's time to the host's."""
    return {
        part: {
            name: {"seconds": median(taken), "all_seconds": taken, **ratio(taken, sides[HOST])}
            for name, taken in sides.items()
        }
        for part, sides in seconds.items()
    }


def plot(parts: dict[str, dict[str, Any]]) -> Figure:
    made, axes = figure()
    names = (HOST, DEVICE, SINGLE)
    for i, name in enumerate(names):
        places = [j + (i - 1) * 0.27 for j in range(len(parts))]
        axes.bar(places, [part[name]["seconds"] for part in parts.values()], 0.27, label=name)
    axes.set_xticks(range(len(parts)), [*parts])
    axes.set(ylabel="seconds")
    axes.legend()
    return made


def table(results: dict[str, Any]) -> str:
    """Seconds of the closed form's linear algebra on both sides."""
    parts = results["parts"]
    refuse_equal("place", list(parts.items()))
    sides = [*next(iter(parts.values()))]
    rows = [
        [part, *(f"{shown(by[side]['seconds'])} ({times(by[side]['ratio'])})" for side in sides)]
        for part, by in parts.items()
    ]
    what = f"{results['rows']:,} rows of {results['d_in']} → {results['e']}"
    made = caption(results["machine"], "speed.where_to_solve")
    header = [f"{what}: seconds, to the host", *sides]
    return f"{made}\n\n{table_of(header, rows)}\n\nJAX on {results['device']}."


if __name__ == "__main__":
    main()
