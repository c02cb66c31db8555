"""The table of processes that come late, never, or with numbers that do not fit.

The processes are started by `LATE_OUT=FILE pytest -m slow tests/runtime/test_late_processes.py`.
"""

from typing import Any

from benchmarks.markdown import table_of


def table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    rows = [
        [row["case"], ", ".join(map(str, row["codes"])), ", ".join(map(str, row["seconds"]))]
        for row in results["rows"]
    ]
    about = (
        f"*{machine['date']}, {machine['cores']} cores ({machine['cpu']}), busy with other work; "
        "seconds with the start of the program; `pytest -m slow "
        "tests/runtime/test_late_processes.py`.*"
    )
    return f"{about}\n\n{table_of(['case', 'exit codes', 'seconds'], rows)}"
