"""The tables of docs/security.md: hostile inputs by family, and kills by command and signal.

What is measured is in the tests: `python -m tests.attack.fuzz --out FILE`, and `KILLS_OUT=FILE
pytest -m slow tests/runs/test_kills.py`.
"""

from collections import Counter
from typing import Any

from benchmarks.markdown import table_of


def kills(results: dict[str, Any]) -> str:
    machine, rows = results["machine"], results["rows"]
    signals, cases = (sorted({row[name] for row in rows}) for name in ("signal", "command"))
    counts = Counter({(row["command"], row["when"], row["signal"]): row["kills"] for row in rows})
    shown = [
        [f"{command}, {when}", *(str(counts[command, when, signal]) for signal in signals)]
        for command in cases
        for when in ("random", "writing")
        if any(counts[command, when, signal] for signal in signals)
    ]
    about = (
        f"*{machine['date']}, {machine['cores']} cores ({machine['cpu']}), Python "
        f"{machine['python']}, jax {machine['versions']['jax']}; {counts.total()} kills; `pytest "
        "-m slow tests/runs/test_kills.py`.*"
    )
    return (
        f"{about}\n\n{table_of(['killed at a random time, or while it writes', *signals], shown)}"
    )


def table(results: dict[str, Any]) -> str:
    machine, rows = results["machine"], results["rows"]
    inputs, good = (sum(row[name] for row in rows) for name in ("inputs", "as_promised"))
    shown = [
        [
            row["family"].replace("_", " "),
            f"{row['inputs']:,}",
            f"{row['as_promised']:,}",
            ", ".join(f"{count} × {kind}" for kind, count in row["faults"].items()) or "–",
        ]
        for row in rows
    ]
    total = ["all", f"{inputs:,}", f"{good:,}", f"{inputs - good:,}"]
    runs = "; ".join(
        f"seed {run['seed']}: {run['minutes']:.0f} minutes, {run['inputs']:,} inputs, "
        f"{run['faults']} fault{'s' * (run['faults'] != 1)}"
        for run in results["runs"]
    )
    about = (
        f"*{machine['date']}, {machine['cores']} cores ({machine['cpu']}), Python "
        f"{machine['python']}, jax {machine['versions']['jax']}; `python -m tests.attack.fuzz "
        f"--seed N`, one run after the other, each after the faults of the one before were fixed: "
        f"{runs}.*"
    )
    header = ["family of inputs", "tried", "as promised", "faults"]
    return f"{about}\n\n{table_of(header, [*shown, total])}"
