"""Time and peak memory of `jax-unlearn demo`, in processes of its own, without torch.

Once with an empty cache of compiled programs, and once with what the first has compiled.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.markdown import caption

RESULTS = Path(__file__).parents[1] / "results" / "demo.json"


def main() -> None:
    runs = []
    with TemporaryDirectory() as folder:
        # The second loads what the first has compiled.
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(folder) / "cache")}
        for name in ("first", "second"):
            out = Path(folder) / name
            command = [sys.executable, "-m", "jax_unlearn", "demo", "--out", str(out)]
            before, begun = cpu_seconds(), time.perf_counter()
            subprocess.run(command, check=True, env=environment)
            seconds = time.perf_counter() - begun
            metrics = json.loads((out / "metrics.json").read_text())
            runs.append(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds() - before,
                    "extract": metrics["seconds"]["extract"],
                    "optimise": metrics["seconds"]["optimise"],
                }
            )
    # In KiB on Linux; the demos are the only children so far. Memory of this process when a child
    # starts counts as the child's, so the next import is not at the top.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    from benchmarks.speed.tower import machine

    facts = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "peak_mib": peak,
        "optimizer": metrics["optimizer"],
        "runs": runs,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


def cpu_seconds() -> float:
    """CPU seconds of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(facts: dict[str, Any]) -> str:
    """Time and memory of the demo, in two sentences."""
    first, second = facts["runs"]
    return (
        f"{caption(facts['machine'], 'speed.demo')}\n\n"
        f"{second['seconds']:.0f} s of wall time ({second['cpu_seconds']:.0f} s of CPU time), of "
        f"which {second['extract']:.1f} s are loading and extraction and {second['optimise']:.1f} "
        f"s the targets and the solver ({facts['optimizer'].replace('_', ' ')}); "
        f"{facts['peak_mib']:.0f} MiB of peak memory. The first time, when programs are compiled, "
        f"it is {first['seconds']:.0f} s ({first['cpu_seconds']:.0f} s)."
    )


if __name__ == "__main__":
    main()
