"""Whole runs on this machine's accelerator.

demo: the shipped model and images, twice on the accelerator and once on the host's CPU: whether the
first two give the same bytes, and how far the third differs. large: images of a megapixel through a
tower of 24 × 1024 in bfloat16, from files to adapter, once without interruption and once stopped by
SIGTERM and resumed. Results are saved after each step.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.harness import clocked, command, write
from benchmarks.scale.accelerator import PATCHES, error_of, save_tower
from benchmarks.scale.crops import CONCEPT, launch, metrics, snapshots
from benchmarks.scale.many_images import ADAPTER
from benchmarks.speed.tower import machine
from jax_unlearn.runtime.assets import ASSETS

CLI = [sys.executable, "-m", "jax_unlearn"]


def main() -> None:
    parser = command("accelerator_runs", __doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    add("--images", type=int, default=800, help="to keep, in part large")
    add("--side", type=int, default=1024, help="of each of them, in pixels")
    options = parser.parse_args()
    results: dict[str, Any] = {part: {} for part in options.parts}
    for part in options.parts:
        with TemporaryDirectory() as folder:
            for facts in PARTS[part](Path(folder), options):
                results[part] |= facts
                print(part, json.dumps(facts), flush=True)
                write(options.out, results)
    # At the end, because it starts JAX, which allocates the device's memory.
    results["machine"] = machine()
    write(options.out, results)


def demo(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The demo in float32, twice here and once on the CPU."""
    for name, platform in {"here": {}, "again": {}, "cpu": {"JAX_PLATFORMS": "cpu"}}.items():
        out = folder / name
        program = [*CLI, "demo", "--concept", CONCEPT, "--out", str(out)]
        begun = time.perf_counter()
        subprocess.run(program, env=os.environ | platform, check=True)
        yield {name: {"seconds": time.perf_counter() - begun, "tower": metrics(out)["tower"]}}
    yield compare_runs(folder / "here", folder / "again")
    yield {"from the CPU": relative_differences(folder / "cpu", folder / "here")}


def compare_runs(one: Path, other: Path) -> dict[str, Any]:
    """Whether two runs gave the same adapter file, and how far their changes differ."""
    files = [(out / ADAPTER).read_bytes() for out in (one, other)]
    return {"same bytes": files[0] == files[1], "apart": relative_differences(one, other)}


def relative_differences(one: Path, other: Path) -> dict[str, float]:
    """The relative difference of B A in two runs, for each Linear."""
    first, second = changes(one), changes(other)
    return {name: error_of(second[name], first[name]) for name in first}


def changes(out: Path) -> dict[str, np.ndarray]:
    """B A of each Linear of a run, which is independent of how it is factored."""
    arrays = load_file(out / ADAPTER)
    return {
        key: arrays[key.replace("lora_A", "lora_B")].astype(np.float64) @ arrays[key]
        for key in arrays
        if "lora_A" in key
    }


def large(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A large run: without interruption, and stopped and resumed."""
    save_tower("24x1024", folder / "checkpoint")
    seconds, _ = clocked(lambda: make_images(folder, options.images, options.side))
    yield {"making images": seconds}
    whole, stopped = folder / "whole", folder / "stopped"
    yield {"seconds": wait(launch(large_command(folder, whole)), 0), "metrics": metrics(whole)}
    process = launch(large_command(folder, stopped, "--save-seconds", "2"))
    saved = folder / "stopped.resume" / "0-of-1" / "preserve"
    while not snapshots(saved):
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    yield {"stopping": wait(process, 128 + signal.SIGTERM)}
    seconds = wait(launch(large_command(folder, stopped, "--resume")), 0)
    done = metrics(stopped)["tower"]["images"]
    yield {"seconds after": seconds, "images after": done, **compare_runs(whole, stopped)}


def wait(process: "subprocess.Popen[bytes]", code: int) -> float:
    """Wait for a process; returns the seconds, and asserts its exit status."""
    seconds, found = clocked(process.wait)
    assert found == code, (process.args, found)
    return seconds


def make_images(folder: Path, count: int, side: int) -> None:
    """Enlarge shipped images: 40 of a class to forget, and `count` to keep in ten classes."""
    sources = sorted((ASSETS / "images" / "train").iterdir())
    others = [path for path in sources if path.name != CONCEPT][:10]
    jobs = [(ASSETS / "images" / "train" / CONCEPT, folder / "forget" / CONCEPT, 40, side)]
    each = count // len(others)
    jobs += [(path, folder / "preserve" / path.name, each, side) for path in others]
    with ProcessPoolExecutor() as pool:
        list(pool.map(enlarge, jobs))


def enlarge(job: tuple[Path, Path, int, int]) -> None:
    source, folder, count, side = job
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    files = sorted(source.iterdir())
    for number in range(count):
        with Image.open(files[number % len(files)]) as file:
            image = file.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, np.int16) + random.integers(-4, 5, size=(side, side, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def large_command(folder: Path, out: Path, *more: str) -> list[str]:
    sides = ["--forget", str(folder / "forget"), "--preserve", str(folder / "preserve")]
    checkpoint = ["--checkpoint", str(folder / "checkpoint"), "--out", str(out)]
    size = ["--dtype", "bfloat16", "--batch-patches", str(PATCHES)]
    return [*CLI, "run", *checkpoint, *sides, *size, *more]


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "demo": demo,
    "large": large,
}


if __name__ == "__main__":
    main()
