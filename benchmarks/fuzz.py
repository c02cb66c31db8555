"""The table of a fuzz run: hostile inputs by family, and how many ended as promised.

The run itself is `python -m tests.attack.fuzz`, because the inputs are made by the tests.
"""

from typing import Any

from benchmarks.markdown import table_of


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
    about = (
        f"*{machine['date']}, {machine['cores']} cores ({machine['cpu']}), Python "
        f"{machine['python']}, jax {machine['versions']['jax']}; {results['minutes']:.0f} minutes; "
        f"`python -m tests.attack.fuzz --seed {results['seed']}`.*"
    )
    header = ["family of inputs", "tried", "as promised", "faults"]
    return f"{about}\n\n{table_of(header, [*shown, total])}"
