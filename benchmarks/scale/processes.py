"""One process against two on the same images, each process on a core of its own.

Images are crops of the shipped ones (benchmarks/scale/crops.py). Compares the seconds until the
statistics of all images are complete (`seconds.extract` of metrics.json), including the start of
JAX, loading the checkpoint and the exchange between the processes; runs alternate.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import command, figure, ratio, save
from benchmarks.markdown import caption, refuse_equal, table_of
from benchmarks.scale.crops import command as run_command
from benchmarks.scale.crops import free_port, launch, make_images, metrics, peak
from benchmarks.speed.tower import machine


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("processes", __doc__, rounds=3)
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder / "images", options.images)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for count, found in seconds.items():
                found.append(extracted(folder, folder / f"{number}-{count}", count))
    results: dict[str, Any] = {"machine": machine(), "images": options.images}
    results |= {"one": seconds[1], "two": seconds[2], **ratio(seconds[1], seconds[2])}
    print(json.dumps(results, indent=1))
    made, axes = figure(width=5, height=3.5)
    axes.bar(["1 process", "2 processes"], [min(seconds[1]), min(seconds[2])])
    axes.set(ylabel="seconds")
    save(options.out, results, made)


def extracted(folder: Path, out: Path, count: int) -> float:
    """Seconds until `count` processes have the statistics of all images."""
    address = f"127.0.0.1:{free_port()}"

    def distributed(index: int) -> list[str]:
        if count == 1:
            return []
        of = ["--processes", str(count), "--process-id", str(index)]
        return ["--distributed", "--coordinator", address, *of]

    processes = [
        launch(run_command(folder / "images", out, *distributed(i)), cores=[i])
        for i in range(count)
    ]
    for process in processes:
        peak(process)
    return float(metrics(out)["seconds"]["extract"])


def table(results: dict[str, Any]) -> str:
    """One process against two."""
    one, two = (min(results[name]) for name in ("one", "two"))
    refuse_equal("processes", [("1 process", results["one"]), ("2 processes", results["two"])])
    rows = [
        ["1 process, 1 core", f"{one:.1f}", "1"],
        ["2 processes, 1 core each", f"{two:.1f}", f"**{results['ratio']:.2f} ×**"],
    ]
    header = [f"{results['images']:,} images to statistics", "seconds, best", "ratio, median"]
    return f"{caption(results['machine'], 'scale.processes')}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
