"""Markdown tables, and the marks between which they are written."""

from collections.abc import Iterable
from typing import Any

import numpy as np

Row = dict[str, Any]


def replace(text: str, name: str, content: str) -> str:
    """Put `content` between the two marks of that name."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"there are no marks {start} … {end}")
    return f"{head}{start}\n\n{content}\n\n{end}{tail}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def over_seeds(values: Iterable[float | None]) -> str:
    """The mean in per cent, and the range where seeds differ by more than the digit shown."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return low if low == high else f"{np.mean(known):.1f} ({low}–{high})"


def made(facts: Row, name: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    cores = f"{facts['cores']} cores ({facts['cpu']}), {facts['torch_threads']} threads"
    return f"{cores}, {versions}, {facts['date']}, `python -m benchmarks.{name}`."


def shown(number: float) -> str:
    """Three digits, or all before the point; no exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def times(number: float) -> str:
    return f"{shown(number)} ×"


def machine(facts: Row) -> str:
    return (
        f"Measured on {facts['date']} by `make table`: {facts['cores']} cores ({facts['cpu']}), "
        f"Python {facts['python']}, jax {facts['jax']}, torch {facts['torch']}."
    )
