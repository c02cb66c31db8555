"""Memory and communication of a tower's pass on slices of TPU v5e, from compiled programs.

The programs are compiled for the slices and not run. For each tower and slice, with sharded batches
only (data) or sharded block weights too (fsdp): bytes of a device by part, bytes that it receives
from others per image, and bytes that it receives from other hosts once per pass, when the
statistics are summed. Batches are of images of 4096 patches, one megapixel. Flops are counted by
`memory_plan.flops`.

Needs the compilers: after `make aot`,
`JAX_PLATFORMS=cpu .venv-aot/bin/python -m benchmarks.scale.chips`.
A program takes up to half a minute.
"""

import argparse
import json
import time
from collections.abc import Sequence
from math import prod
from typing import Any

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.harness import command, figure, save
from benchmarks.markdown import refuse_equal, table_of
from benchmarks.scale.compiled import TOWERS, compile_total, hosts_of, received, tower
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runs.inspect.accelerators import Chips, find_chips
from jax_unlearn.runs.inspect.memory_plan import (
    ROW,
    compile_pass,
    flops,
    memory_of,
    statistics,
    weights,
)

SLICES = ["1x1", "2x2", "4x4", "8x8", "16x16"]
# Numbers summed in the compiled program; the bytes received are proportional to it.
NUMBERS = 2**20
COLUMNS = {
    "tower": "tower, MiB",
    "batch": "batch, MiB",
    "rows at the taps": "taps, MiB",
    "temporaries": "temporaries, MiB",
    "statistics": "statistics, MiB",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("scale", __doc__, rounds=1)
    add = parser.add_argument
    add("--towers", nargs="+", choices=TOWERS, default=list(TOWERS), help="layers x width")
    add("--slices", nargs="+", default=SLICES, help="of v5e")
    add("--fsdp", type=int, default=4, help="devices that share the blocks' weights")
    add("--rows", type=int, default=2, help="images of a device's batch")
    add("--images", type=int, default=10**6, help="of a pass")
    options = parser.parse_args(arguments)
    cases = [
        case(name, shape, fsdp, options)
        for name in options.towers
        for shape in options.slices
        for fsdp in sorted({1, options.fsdp})
        if chips_of(shape) % fsdp == 0
    ]
    given = {k: getattr(options, k) for k in ("fsdp", "rows", "images")}
    facts = {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__, "patches": ROW}
    results = {**facts, **given, "cases": cases}
    show(cases)
    save(options.out, results, plot(results))


def chips_of(shape: str) -> int:
    return prod(map(int, shape.split("x")))


def case(name: str, shape: str, fsdp: int, options: argparse.Namespace) -> dict[str, Any]:
    """One program: bytes of a device, received per image and per pass, and flops per image."""
    chips = find_chips(f"v5e:{shape}", fsdp)
    config = tower(name, chips.kernel)
    program = compile_pass(config, chips, options.rows, ROW)
    memory = memory_of(program, weights(config, chips))
    memory["statistics"] = statistics(config, chips)
    work, size = flops(config, ROW), chips.mesh.size
    found = {
        "tower": name,
        "chips": size,
        "hosts": hosts_of(chips),
        "fsdp": fsdp,
        "memory": memory,
        "flops of an image": work,
        "flops of a device in a pass": work * options.images / size,
        "bytes received for an image": received(program, config.depth, fsdp) / options.rows,
        "bytes received once a pass": summing(config, chips),
    }
    share = found["bytes received once a pass"] * size / options.images
    found["bytes of an image of a pass"] = found["bytes received for an image"] + share
    print(json.dumps(found), flush=True)
    return found


def summing(config: VisionConfig, chips: Chips) -> float:
    """Bytes that a device receives while the Gram matrices of all Mergers' taps are summed."""
    hosts = hosts_of(chips)
    if hosts == 1:
        return 0.0
    half = len(config.mergers) * config.merged_size * (config.merged_size + 1) // 2
    return received(compile_total(NUMBERS, chips), 1, hosts) * half / NUMBERS


def show(cases: Sequence[dict[str, Any]]) -> None:
    table = Table("tower", "chips", "fsdp", *COLUMNS.values())
    for column in ("TFLOP an image", "PFLOP a pass", "MiB received an image", "MiB once a pass"):
        table.add_column(column)
    for one in cases:
        sizes = [f"{one['memory'][part] / 2**20:.0f}" for part in COLUMNS]
        row = [one["tower"], str(one["chips"]), str(one["fsdp"]), *sizes]
        row.append(f"{one['flops of an image'] / 1e12:.2f}")
        row.append(f"{one['flops of a device in a pass'] / 1e15:,.0f}")
        row.append(f"{one['bytes received for an image'] / 2**20:.1f}")
        table.add_row(*row, f"{one['bytes received once a pass'] / 2**20:,.0f}")
    Console(width=160).print(table)


def plot(results: dict[str, Any]) -> Figure:
    """Plot a device's memory, and the bytes moved per image, against the number of chips."""
    made, (left, right) = figure(columns=2, width=11)
    kinds = sorted({(case["tower"], case["fsdp"]) for case in results["cases"]})
    for name, fsdp in kinds:
        cases = [c for c in results["cases"] if (c["tower"], c["fsdp"]) == (name, fsdp)]
        chips = [case["chips"] for case in cases]
        label = f"{name}, {f'fsdp {fsdp}' if fsdp > 1 else 'data'}"
        left.plot(chips, [sum(c["memory"].values()) / 2**30 for c in cases], "o-", label=label)
        moved = [case["bytes of an image of a pass"] / 2**20 for case in cases]
        right.plot(chips, moved, "o-", label=label)
    left.set(xlabel="chips", ylabel="memory of a device, GiB", ylim=0)
    right.set(xlabel="chips", ylabel=f"MiB an image, of {results['images']:,}", yscale="log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.legend()
    return made


def table(results: dict[str, Any]) -> str:
    """A device's memory and work, and the bytes it receives, by the number of chips."""
    rows, measured = [], []
    for one in results["cases"]:
        sharing = f"fsdp {one['fsdp']}" if one["fsdp"] > 1 else "data"
        name = f"{one['tower'].replace('x', ' × ')}, {sharing}"
        measured.append((f"{name}, {one['chips']} chips", one))
        rows.append(
            [
                name,
                str(one["chips"]),
                *(f"{one['memory'][part] / 2**20:.0f}" for part in one["memory"]),
                f"{one['flops of an image'] / 1e12:.2f}",
                f"{one['flops of a device in a pass'] / 1e15:,.0f}",
                f"{one['bytes received for an image'] / 2**20:.1f}",
                f"{one['bytes received once a pass'] / 2**20:,.0f}",
            ]
        )
    refuse_equal("scale", measured)
    parts = [f"{part}, MiB" for part in results["cases"][0]["memory"]]
    header = ["tower", "chips", *parts, "TFLOP an image", "PFLOP of a device a pass"]
    header += ["MiB received an image", "MiB received once a pass"]
    made = f"*{results['date']}, compiled by jax {results['jax']} for TPU v5e, not run; "
    made += "`python -m benchmarks.scale.chips`.*"
    note = f"A pass is of {results['images']:,} images; what a device does, has and receives."
    return f"{made}\n\n{table_of(header, rows)}\n\n{note}"


if __name__ == "__main__":
    main()
