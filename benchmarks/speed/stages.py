"""Where the seconds of the demo go, and those of a run at the size of Qwen3-VL-2B.

Each is a process of its own (`staged`), which loads the programs that one before it has compiled.
For the 2B model also the time that the products of its blocks take alone, for as many patches, by
XLA and by PyTorch: a pass with these products cannot take less.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.harness import command, write
from benchmarks.markdown import caption, table_of
from benchmarks.scale.real_size import make_checkpoint, photographs
from benchmarks.speed.staged import REST, STAGES
from benchmarks.speed.tower import jax_parts, machine, torch_parts
from jax_unlearn.data.batches import Batch, Item
from porting.qwen3_vision import describe

# Images of a batch of the products, and patches of one of 256 × 256 pixels.
IMAGES, PATCHES = 16, 256
EXIT = "exit"


def main() -> None:
    parser = command("speed.stages", __doc__, rounds=3)
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The time of compiling is that of `benchmarks.speed.demo`.
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        demo = profile(["demo"], folder, environment, options.rounds)
        print(json.dumps(demo, indent=1), flush=True)
        checkpoint, photos = folder / "checkpoint", photographs(folder / "photos")
        make_checkpoint(checkpoint)
        words = ["run", "--checkpoint", str(checkpoint), *photos, "--concept", "astronaut"]
        large = profile(words, folder, environment, 1)
        large["products"] = products(checkpoint, large["patches"], options.rounds)
        print(json.dumps(large, indent=1), flush=True)
    out = options.out.with_name("stages.json")
    write(out, {"machine": machine(), "demo": demo, "real_size": large})


def profile(
    words: Sequence[str], folder: Path, environment: dict[str, str], rounds: int
) -> dict[str, Any]:
    """The stages of the fastest of several runs, after one that compiles."""
    runs = [once(words, folder, environment) for _ in range(rounds + 1)]
    return min(runs[1:], key=lambda one: float(one["seconds"]))


def once(words: Sequence[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Seconds and CPU seconds of a command and of its stages."""
    file, run = folder / "stages.json", folder / "run"
    file.unlink(missing_ok=True)
    begun = time.time()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.speed.staged", str(begun), str(file)),
            *(*words, "--out", str(run), "--overwrite"),
        ],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.time() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    facts = json.loads(file.read_text())
    cpu = usage.ru_utime + usage.ru_stime
    stages = facts["stages"]
    if missing := {stage for stage, _, _ in STAGES} - set(stages):
        raise SystemExit(
            f"{' '.join(words)}: {missing} was not entered; see benchmarks.speed.staged"
        )
    inside = sum(one for _, one in stages.values())
    stages[EXIT] = [begun + seconds - facts["ended"], cpu - inside]
    tower = json.loads((run / "metrics.json").read_text())["tower"]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "programs": facts["programs"],
        "stages": stages,
        "images": tower["images"],
        "patches": tower["patches"],
    }


def products(checkpoint: Path, patches: int, rounds: int) -> dict[str, list[float]]:
    """Seconds and CPU seconds of the blocks' products for so many patches, the least of rounds."""
    config = describe(checkpoint).config
    batch = Batch([Item(i, PATCHES) for i in range(IMAGES)], IMAGES, PATCHES)
    grid = np.array([[1, 16, 16]] * IMAGES)
    parts = torch_parts(config, grid, torch.float32) | jax_parts(config, batch)
    times = config.depth * patches / (IMAGES * PATCHES)
    names = {"XLA": "jax products", "PyTorch": "torch products"}
    return {
        library: [times * one for one in least(parts[name], rounds)]
        for library, name in names.items()
    }


def least(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Seconds and CPU seconds of the fastest of several calls, after one that is not timed."""
    run()
    laps = []
    for _ in range(rounds):
        begun, cpu = time.perf_counter(), time.process_time()
        run()
        laps.append((time.perf_counter() - begun, time.process_time() - cpu))
    return min(laps)


def rows(found: dict[str, Any]) -> str:
    """The stages in their order, the rest and the sum last."""
    stages = dict(found["stages"])
    rest = stages.pop(REST)
    lines = [[name, f"{one:.2f}", f"{cpu:.2f}"] for name, (one, cpu) in stages.items()]
    lines.append([REST, *(f"{one:.2f}" for one in rest)])
    lines.append(["in all", f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.2f}"])
    return table_of(["stage", "seconds", "CPU seconds"], lines)


def demo_table(results: dict[str, Any]) -> str:
    found = results["demo"]
    return (
        f"{caption(results['machine'], 'speed.stages')}\n\n{rows(found)}\n\n"
        f"{found['programs']:.2f} s of these are tracing programs and loading compiled ones."
    )


def size_table(results: dict[str, Any]) -> str:
    found = results["real_size"]
    passes = found["stages"]["passes of the tower"]
    limits = ", ".join(
        f"{seconds:.1f} s ({cpu:.1f} CPU seconds) by {library}"
        for library, (seconds, cpu) in found["products"].items()
    )
    share = found["products"]["XLA"][1] / passes[1]
    return (
        f"{caption(results['machine'], 'speed.stages')}\n\n{rows(found)}\n\n"
        f"{found['programs']:.2f} s of these are tracing programs and loading compiled ones.\n\n"
        f"The products of the blocks alone take, for {found['patches']:,} patches, {limits}. XLA's "
        f"are {share:.0%} of the CPU time of the passes."
    )


if __name__ == "__main__":
    main()
