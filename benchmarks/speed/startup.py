"""CPU seconds to start: `--help` and `import jax_unlearn`, and beside them JAX and Python alone.

Each is a process of its own; the least of several rounds, since the first reads files from disk.
"""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.harness import command, write
from benchmarks.markdown import caption, table_of
from benchmarks.speed.tower import machine

STARTS = {
    "`jax-unlearn --help`": ["-m", "jax_unlearn", "--help"],
    "`jax-unlearn run --help`": ["-m", "jax_unlearn", "run", "--help"],
    "`import jax_unlearn`": ["-c", "import jax_unlearn"],
    "`from jax_unlearn import solve`": ["-c", "from jax_unlearn import solve"],
    "`import jax`, for comparison": ["-c", "import jax"],
    "Python alone": ["-c", ""],
}


def main() -> None:
    parser = command("speed.startup", __doc__, rounds=5)
    options = parser.parse_args()
    rows = [
        {"start": name, "cpu_seconds": min(cpu_seconds(words) for _ in range(options.rounds))}
        for name, words in STARTS.items()
    ]
    out = options.out.with_name("startup.json")
    write(out, {"machine": machine(), "rows": rows})
    print(json.dumps(rows, indent=1))


def cpu_seconds(words: list[str]) -> float:
    """CPU time of a Python process, which must succeed."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_utime + usage.ru_stime


def table(results: dict[str, Any]) -> str:
    rows = [[row["start"], f"{row['cpu_seconds']:.2f}"] for row in results["rows"]]
    return f"{caption(results['machine'], 'speed.startup')}\n\n" + table_of(
        ["start", "CPU seconds"], rows
    )


if __name__ == "__main__":
    main()
