"""A run over many images: memory, images per second, idle time, and resuming after a kill.

Images are crops of the shipped ones in tar shards (benchmarks/scale/crops.py), used as preserve
images for training; each number of images runs in a process of its own. The run with the last
number is repeated, killed with SIGKILL when half of its images are done, and continued with
--resume: the adapter file must be the same.
"""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import command, figure, save
from benchmarks.markdown import caption, refuse_equal, table_of
from benchmarks.scale.crops import command as run_command
from benchmarks.scale.crops import launch, make_images, metrics, peak, snapshots
from benchmarks.speed.tower import machine

ADAPTER = Path("adapter") / "adapter_model.safetensors"
SAVING = ("--save-seconds", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("many_images", __doc__, rounds=1)
    parser.add_argument("--images", nargs="+", type=int, default=[1000, 5000, 20_000, 100_000])
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for count in options.images:
            make_images(folder / str(count), count)
            results["rows"].append(measure(folder, count))
            print(json.dumps(results["rows"][-1]), flush=True)
        results["killed"] = killed(folder, count, results["rows"][-1]["seconds"])
    first, last = results["rows"][0], results["rows"][-1]
    results["memory"] = last["peak"] / first["peak"]
    print(json.dumps(results["killed"]), f"memory × {results['memory']:.3f}", flush=True)
    save(options.out, results, plot(results["rows"]))


def measure(folder: Path, count: int) -> dict[str, Any]:
    """A run without interruption."""
    out = folder / f"out-{count}"
    begun = time.perf_counter()
    memory = peak(launch(run_command(folder / str(count), out)))
    seconds = time.perf_counter() - begun
    tower = metrics(out)["tower"]
    facts = {key: tower[key] for key in ("images", "images_per_second", "waiting", "padding")}
    return {"preserve": count, "peak": memory, "seconds": seconds, **facts}


def killed(folder: Path, count: int, whole: float) -> dict[str, Any]:
    """A run that is killed in the middle of its images and resumed.

    Args:
        folder: folder of the images and runs.
        count: number of images.
        whole: seconds of the run without interruption.
    """
    images, out = folder / str(count), folder / "killed"
    process = launch(run_command(images, out, *SAVING))
    saved = folder / "killed.resume" / "0-of-1" / "preserve"
    time.sleep(whole / 2)
    while not snapshots(saved):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = time.perf_counter()
    memory = peak(launch(run_command(images, out, *SAVING, "--resume")))
    seconds = time.perf_counter() - begun
    done = metrics(out)["tower"]["images"]
    equal = (out / ADAPTER).read_bytes() == (folder / f"out-{count}" / ADAPTER).read_bytes()
    assert equal, "the resumed run gave a different adapter"
    return {"seconds after": seconds, "images after": done, "peak after": memory, "same": equal}


def plot(rows: list[dict[str, Any]]) -> Figure:
    made, axes = figure(width=6, height=3.5)
    counts = [row["preserve"] for row in rows]
    axes.plot(counts, [row["peak"] / 2**20 for row in rows], "o-")
    axes.set(xscale="log", xlabel="images to keep", ylabel="peak memory, MiB", ylim=0)
    return made


def table(results: dict[str, Any]) -> str:
    """Memory and speed by the number of images, and the run that was killed."""
    rows = [
        [
            f"{row['preserve']:,}",
            f"{row['peak'] / 2**20:,.0f}",
            f"{row['images_per_second']:.0f}",
            f"{100 * row['waiting']:.1f} %",
            f"{row['seconds']:.0f}",
        ]
        for row in results["rows"]
    ]
    refuse_equal("many images", [(f"{row['preserve']:,}", row) for row in results["rows"]])
    header = ["images to keep", "peak memory, MiB", "images/s", "waiting", "seconds of the run"]
    stopped, whole = results["killed"], results["rows"][-1]
    after = (
        f"Killed in the middle, the last run computed {stopped['images after']:,} of its "
        f"{whole['images']:,} images after `--resume` and ended with "
        f"{'the same adapter, byte for byte' if stopped['same'] else '**another adapter**'}, "
        f"{stopped['seconds after']:.0f} s later."
    )
    made = caption(results["machine"], "scale.many_images")
    return f"{made}\n\n{table_of(header, rows)}\n\n{after}"


if __name__ == "__main__":
    main()
