"""Write Markdown tables between marks, and check their rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

Row = dict[str, Any]

# Tables in which two rows may have the same numbers, with the reason.
EQUAL_ROWS: dict[str, str] = {
    "exam": "counts of right answers may be equal for two kinds of questions",
    "clip exam": "counts of right answers may be equal for two prompts or lists of names",
}


def replace(text: str, name: str, content: str) -> str:
    """Replace the text between the two marks of a name by `content`."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"there are no marks {start} … {end}")
    return f"{head}{start}\n\n{content}\n\n{end}{tail}"


def table_of(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, whose first column is text and whose others are numbers."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def caption(facts: Mapping[str, Any], module: str) -> str:
    """The first line of a block: date, machine, versions and command.

    Args:
        facts: the `machine` entry of a benchmark's results.
        module: the module below `benchmarks`, such as `speed.tower`.
    """
    versions = facts.get("versions") or {name: facts[name] for name in ("jax", "torch")}
    parts = [facts["date"]]
    if "accelerator" in facts:
        parts.append(facts["accelerator"])
    else:
        parts.append(f"{facts['cores']} cores ({facts['cpu']})")
    parts += [f"{name} {version}" for name, version in versions.items()]
    return f"*{', '.join(parts)}; `python -m benchmarks.{module}`.*"


def refuse_equal(table: str, rows: Sequence[tuple[str, Any]]) -> None:
    """Exit if all measured numbers of two rows of a table are equal to the last digit.

    Such rows are most likely one measurement under two names. A row may give the reason in a field
    `equal_because`; tables in `EQUAL_ROWS` are not checked.

    Args:
        table: name of the table.
        rows: label and measured part of each row, from the JSON. Rows of one label, such as those
            of several seeds, are not compared.
    """
    if table in EQUAL_ROWS:
        return
    found = [(label, tuple(numbers(part)), part) for label, part in rows]
    for (one, ours, a), (other, theirs, b) in combinations(found, 2):
        if one != other and ours and ours == theirs and not (said(a) or said(b)):
            raise SystemExit(
                f"table {table}: rows “{one}” and “{other}” are equal in all {len(ours)} measured "
                "numbers; if that is right, say why in a field equal_because of one of them"
            )


def said(part: Any) -> bool:
    return isinstance(part, Mapping) and bool(part.get("equal_because"))


def numbers(part: Any) -> Iterator[float]:
    """Every number in a piece of JSON, in the order of its keys."""
    if isinstance(part, Mapping):
        for key in sorted(part):
            yield from numbers(part[key])
    elif isinstance(part, list | tuple):
        for value in part:
            yield from numbers(value)
    elif isinstance(part, int | float) and not isinstance(part, bool):
        yield float(part)


def over_seeds(values: Iterable[float | None]) -> str:
    """The mean in per cent, with the range if seeds differ in the digits shown."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return low if low == high else f"{np.mean(known):.1f} ({low}–{high})"


def shown(number: float) -> str:
    """A number with three digits, or all digits before the point, without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def times(number: float) -> str:
    return f"{shown(number)} ×"


def right_answers(what: str, scores: Mapping[str, Sequence[int]]) -> str:
    """A shipped model's accuracy on held-out images, one row per kind of question."""
    rows = [
        [family, f"{right} of {total}", f"{100 * right / total:.1f}"]
        for family, (right, total) in scores.items()
    ]
    return table_of([what, "right", "%"], rows)
