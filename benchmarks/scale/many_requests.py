"""A ledger of up to 1,000 requests at 4096 → 2048: time, memory and disk of each command.

The statistics are synthetic: classes around means of their own, with variances that fall over the
directions as those of a tower do. All classes are among the images to preserve, and each request is
about one of them. Every command runs in a process of its own.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import command, figure, save
from benchmarks.markdown import caption, refuse_equal, table_of
from benchmarks.scale.crops import launch
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runs.ledger.chain import FILE, Entry, new_entry
from jax_unlearn.runs.ledger.commands import settings_of
from jax_unlearn.runs.ledger.options import Init, ledger_config
from jax_unlearn.runs.ledger.requests import Request
from jax_unlearn.runs.ledger.store import StoredImages, StoredTower, save_images, save_tower
from jax_unlearn.runtime.assets import ASSETS

NAME = "merger.linear_fc2"
# Directions in which images of a class differ, and the exponent by which their variances fall.
DIRECTIONS, FALL = 256, 0.7


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("many_requests", __doc__)
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument(
        "--joint", nargs="*", type=int, default=[100, 1000], help="requests of one joint fit"
    )
    parser.add_argument("--images", type=int, default=10, help="images of each request")
    parser.add_argument("--keep", type=int, default=1000, help="classes that stay")
    parser.add_argument("--kept-images", type=int, default=25, help="images of each of those")
    parser.add_argument("--shape", nargs=2, type=int, default=[4096, 2048], help="D_in and E")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "shape": options.shape,
        "images": options.images,
        "kept": options.keep * options.kept_images,
        "rows": [],
    }
    with TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        ledger.mkdir()
        counts = [options.images] * max(options.requests) + [options.kept_images] * options.keep
        # In a process of its own, since memory of this one when a command starts counts as its.
        making = multiprocessing.get_context("spawn").Process(
            target=begin, args=(ledger, counts, *options.shape)
        )
        making.start()
        making.join()
        assert making.exitcode == 0
        results["store"] = size_of(ledger / "store")
        for combine, counts in (("sum", options.requests), ("joint", options.joint)):
            for count in counts:
                results["rows"].append(measure(ledger, count, combine))
                print(json.dumps(results["rows"][-1]), flush=True)
    # It imports torch, which is large.
    from benchmarks.speed.tower import machine

    save(options.out, {"machine": machine(), **results}, plot(results["rows"]))


def begin(directory: Path, counts: Sequence[int], d_in: int, e: int) -> None:
    """A ledger of classes of so many images, a fifth of each held out, without any request."""
    random = np.random.default_rng(0)
    labels = np.repeat([label(i) for i in range(len(counts))], counts)
    total = len(labels)
    axes = random.normal(size=(DIRECTIONS, d_in)) * np.arange(1.0, DIRECTIONS + 1)[:, None] ** -FALL
    means = np.repeat(random.normal(size=(len(counts), DIRECTIONS)), counts, axis=0)
    rows = (means + random.normal(size=means.shape)) @ axes + 0.1 * random.normal(
        size=(total, d_in)
    )
    digests = random.integers(0, 256, (total, 32)).astype(np.uint8)
    first = np.concatenate([np.arange(count) for count in counts])
    images = StoredImages(
        digests, first % 5 == 0, tuple(labels.tolist()),
        tuple(f"/gone/{i}.png" for i in range(total)), {NAME: (rows + 1).astype(np.float32)},
    )  # fmt: skip
    images = images.take(sorted(range(total), key=lambda i: digests[i].tobytes()))
    weight = (random.normal(size=(e, d_in)) / d_in**0.5).astype(np.float32)
    linear = FrozenLinear(NAME, weight, np.zeros(e, np.float32))
    tower = StoredTower((linear,), {linear.projector: np.zeros(e, np.float32)})
    init = Init(directory, ASSETS / "checkpoint", ASSETS / "images")
    what = {
        # So that no Linear of another shape is there to save for.
        "settings": settings_of(ledger_config(init)) | {"checkpoint": "/gone/checkpoint"},
        "linears": {NAME: "0" * 64},
        "contents": "0" * 64,
        "tower": save_tower(directory, tower),
        "preserve": save_images(directory, images),
        "left_out": [],
        "image_means": True,
    }
    write_entries(directory, [new_entry("init", what=what)])
    # Which images a request is about decides its id.
    ids = [
        Request(label(i), images.of_classes([label(i)])).id
        for i, count in enumerate(counts)
        if count == counts[0]
    ]
    (directory / "ids.json").write_text(json.dumps(ids))


def label(number: int) -> str:
    """The name of a class, one word that no other contains."""
    return f"class{number:06d}"


def write_entries(directory: Path, entries: Sequence[Entry]) -> None:
    (directory / FILE).write_text("".join(entry.line() for entry in entries))


def measure(ledger: Path, count: int, combine: str) -> dict[str, Any]:
    """Add the last of so many requests, list them, withdraw it, add it again, and solve."""
    init = (ledger / FILE).read_text().splitlines()[0]
    facts = json.loads(init)
    facts.pop("digest")
    entries, ids = [Entry(**facts)], json.loads((ledger / "ids.json").read_text())
    for number in range(count - 1):
        what = {"concept": label(number), "classes": [label(number)], "images": None}
        entries.append(new_entry("add", ids[number], what, entries))
    write_entries(ledger, entries)
    last = ("--concept", label(count - 1))
    row: dict[str, Any] = {"requests": count, "combine": combine}
    row["add"] = run("add", ledger, *last)
    row["list"] = run("list", ledger)
    row["undo"] = run("undo", ledger, ids[count - 1])
    run("add", ledger, *last)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        row["solve"] = run("solve", ledger, "--combine", combine, "--out", str(out))
        metrics = json.loads((out / "metrics.json").read_text())
        requests = metrics["ledger"]["requests"]
        row |= {
            "fit": metrics["seconds"]["optimise"],
            "rank": metrics["adapter"]["rank"],
            "run": size_of(out),
            "adapter": size_of(out / "adapter"),
            "named_before": float(np.mean([one["named_before"] for one in requests])),
            "named_after": max(one["named_after"] for one in requests),
            "others": metrics["preserve"],
            "probe": metrics["probe"],
        }
    row["chain"] = (ledger / FILE).stat().st_size
    return row


def run(name: str, ledger: Path, *words: str) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak memory in bytes of a command of a ledger."""
    begun = time.perf_counter()
    words = (sys.executable, "-m", "jax_unlearn", "ledger", name, str(ledger), *words)
    process = launch(words)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
    }


def size_of(directory: Path) -> int:
    """Bytes of all files of a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    made, (left, right) = figure(2)
    rows = [row for row in rows if row["combine"] == "sum"]
    counts = [row["requests"] for row in rows]
    for name in ("add", "list", "solve"):
        left.plot(counts, [row[name]["seconds"] for row in rows], "o-", label=name)
        right.plot(counts, [row[name]["peak"] / 2**30 for row in rows], "o-", label=name)
    left.set(xscale="log", yscale="log", xlabel="requests", ylabel="seconds")
    right.set(xscale="log", xlabel="requests", ylabel="peak memory, GiB", ylim=0)
    left.legend()
    return made


def table(results: dict[str, Any]) -> str:
    """Seconds, memory and disk by the number of requests."""
    rows = [
        [
            f"{row['requests']:,}",
            row["combine"],
            *(f"{row[name]['seconds']:.1f}" for name in ("add", "undo", "list", "solve")),
            f"{row['fit']:.0f}",
            f"{row['solve']['peak'] / 2**30:.1f}",
            f"{row['chain'] / 2**20:.2f}",
            f"{row['rank']:,}",
            f"{row['adapter'] / 2**20:.0f}",
            f"{row['run'] / 2**20:,.0f}",
            f"{100 * row['named_before']:.0f} → {100 * row['named_after']:.0f}",
            " → ".join(f"{100 * row['others'][f'accuracy_{when}']:.1f}" for when in
                       ("before", "after")),
        ]
        for row in results["rows"]
    ]  # fmt: skip
    refuse_equal(
        "many requests", [(f"{row['combine']} {row['requests']}", row) for row in results["rows"]]
    )
    header = [
        "requests", "fit", "`add`, s", "`undo`, s", "`list`, s", "`solve`, s", "fit in it, s",
        "peak of `solve`, GiB", "ledger.jsonl, MiB", "rank", "adapter, MiB", "run, MiB",
        "named by a probe, mean → worst", "others, a probe",
    ]  # fmt: skip
    d_in, e = results["shape"]
    probes = ", ".join(sorted({row["probe"] for row in results["rows"]}))
    facts = (
        f"One projector, {d_in} → {e}; {results['images']} images of each request and "
        f"{results['kept']:,} that stay. The store has {results['store'] / 2**20:,.0f} MiB at any "
        f"number of requests. The probes are by {probes}."
    )
    made = caption(results["machine"], "scale.many_requests")
    return f"{made}\n\n{table_of(header, rows)}\n\n{facts}"


if __name__ == "__main__":
    main()
