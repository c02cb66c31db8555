"""Wall time and peak memory of `jax-unlearn demo`, as a process of its own, without torch."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

RESULTS = Path(__file__).parents[1] / "results" / "demo.json"


def main() -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "jax_unlearn", "demo", "--out", str(out)]
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begun
        metrics = json.loads((out / "metrics.json").read_text())
    facts = {
        "seconds": seconds,
        # Linux counts in KiB; the only child is the demo.
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "cores": os.cpu_count(),
        "extract": metrics["seconds"]["extract"],
        "optimise": metrics["seconds"]["optimise"],
        "optimizer": metrics["optimizer"],
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
