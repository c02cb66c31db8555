"""Wall time and peak memory of `jax-unlearn demo`, run in a process of its own, without torch."""

import json
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
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "jax_unlearn", "demo", "--out", str(out)]
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begun
        metrics = json.loads((out / "metrics.json").read_text())
    # In KiB on Linux; the demo is the only child so far. Memory of this process when a child starts
    # counts as the child's, so the next import is not at the top.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    from benchmarks.speed.tower import machine

    facts = {
        "machine": machine(),
        "seconds": seconds,
        "peak_mib": peak,
        "extract": metrics["seconds"]["extract"],
        "optimise": metrics["seconds"]["optimise"],
        "optimizer": metrics["optimizer"],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


def table(facts: dict[str, Any]) -> str:
    """Time and memory of the demo, in a sentence."""
    return (
        f"{caption(facts['machine'], 'speed.demo')}\n\n"
        f"{facts['seconds']:.0f} s of wall time and {facts['peak_mib']:.0f} MiB of peak memory, of "
        f"which {facts['extract']:.1f} s are loading and extraction and {facts['optimise']:.1f} s "
        f"the solver ({facts['optimizer'].replace('_', ' ')})."
    )


if __name__ == "__main__":
    main()
