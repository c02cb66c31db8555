"""Writes the README's tables from the benchmarks' JSON: no figure is typed by hand."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]
DEFAULT = "shift, all Mergers"
READERS = ("nearest_mean", "linear_probe", "refitted_probe", "refitted_neighbour")


def main() -> None:
    text = README.read_text()
    forgetting = json.loads((RESULTS / "forgetting.json").read_text())
    for concept in forgetting["concepts"]:
        name = concept["concept"].replace(" ", "-")
        text = replace(text, f"answers {name}", answers(concept))
        text = replace(text, f"readers {name}", readers(concept))
    text = replace(text, "machine", machine(forgetting["machine"]))
    demo = json.loads((RESULTS / "demo.json").read_text())
    text = replace(text, "demo", demo_line(demo))
    README.write_text(text)


def replace(text: str, name: str, content: str) -> str:
    """Put `content` between the two marks of that name."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"README.md has no marks {start} … {end}")
    return f"{head}{start}\n{content}\n{end}{tail}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setting_name(setting: Row) -> str:
    where = "all Mergers" if setting["targets"] == "all" else "main Merger"
    return f"{'**faithful**: ' if 'preset' in setting else ''}{setting['target']}, {where}"


def by_setting(concept: Row) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in concept["rows"]:
        groups.setdefault(setting_name(row["setting"]), []).append(row)
    return groups


def over_seeds(values: Iterable[float | None]) -> str:
    """The mean, and the range where seeds differ by more than the last digit shown."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = (f"{100 * x:.1f}" for x in (min(known), max(known)))
    mean = f"{100 * float(np.mean(known)):.1f}"
    return mean if low == high else f"{mean} ({low}–{high})"


def answers(concept: Row) -> str:
    """What the Hugging Face model says, a row a setting."""
    before = concept["before"]
    questions = [f"“{n['question']}” (chance {100 * n['chance']:.1f})" for n in before["named"]]
    kept = [f"“{question}”" for question in before["selectivity_of"]]
    header = ["target, LoRA on", *questions, *kept, "others", "near neighbours", "yes/no"]
    rows = [["before", *answer_cells([before])]]
    rows += [
        [name, *answer_cells([row["after"] for row in group])]
        for name, group in by_setting(concept).items()
    ]
    return table(header, rows)


def answer_cells(scores: list[Row]) -> list[str]:
    named = [
        over_seeds(s["named"][i]["share"] for s in scores) for i in range(len(scores[0]["named"]))
    ]
    kept = [over_seeds(s["selectivity_of"][q] for s in scores) for q in scores[0]["selectivity_of"]]
    rest = [over_seeds(s[key] for s in scores) for key in ("others", "neighbours", "yes_no")]
    return [*named, *kept, *rest]


def readers(concept: Row) -> str:
    """What readers find on each path, for the published scheme and the default."""
    groups = by_setting(concept)
    chosen = {name: group for name, group in groups.items() if "faithful" in name}
    chosen["**default**: " + DEFAULT] = groups[DEFAULT]
    paths = groups[DEFAULT][0]["paths"]
    cells = itertools.product(paths, READERS, ("forget", "preserve", "neighbours"))
    rows = [
        [path, reader.replace("_", " "), group]
        + [over_seeds([share(groups[DEFAULT][0], path, reader, "before", group)])]
        + [over_seeds(share(r, path, reader, "after", group) for r in rs) for rs in chosen.values()]
        for path, reader, group in cells
    ]
    return table(["path", "reader", "images", "before", *chosen], rows)


def share(row: Row, path: str, reader: str, when: str, group: str) -> float | None:
    found: float | None = row["paths"][path]["readers"][reader][when][group]
    return found


def machine(facts: Row) -> str:
    return (
        f"Measured on {facts['date']} by `make table`: {facts['cores']} cores ({facts['cpu']}), "
        f"Python {facts['python']}, jax {facts['jax']}, torch {facts['torch']}."
    )


def demo_line(facts: Row) -> str:
    return (
        f"{facts['seconds']:.0f} s of wall time and {facts['peak_mib']:.0f} MiB of peak memory on "
        f"{facts['cores']} cores, of which {facts['extract']:.1f} s are extraction and "
        f"{facts['optimise']:.1f} s the {facts['epochs']} epochs "
        f"({facts['date']}, `python -m benchmarks.demo_cost`)."
    )


if __name__ == "__main__":
    main()
