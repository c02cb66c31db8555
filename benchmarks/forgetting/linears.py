"""The default setting on linear_fc2, on linear_fc1 and on both: forgetting, drift and seconds."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.forgetting import cells
from benchmarks.forgetting.targets import brief, machine, make_bench
from benchmarks.markdown import caption, over_seeds, table_of

RESULTS = Path(__file__).parents[1] / "results" / "linears.json"
# With linear_fc1 a step takes a fifth of a second, and the loss has converged by then.
EPOCHS = 500
CHOICES = (("linear_fc2",), ("linear_fc1",), ("linear_fc1", "linear_fc2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", default="astronaut")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    rows, facts = [], {}
    for linears in CHOICES:
        bench = make_bench(options.concept, console, linears=linears)
        facts = {"before": bench.before, "images": bench.images()}
        rows.append(bench.run({"epochs": EPOCHS, "optimizer": "adam"}, seed=0))
        console.print(f"{linears}, {rows[-1]['seconds']:.1f} s: {brief(rows[-1]['after'])}")
    results = {"machine": machine(), "concept": options.concept, "epochs": EPOCHS}
    results |= facts | {"rows": rows}
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """One concept with each choice of Linears, by the worst naming question."""
    before = results["before"]
    groups = cells.by_label(results["concept"], results["rows"])
    worst = cells.worst(before, [row["after"] for row in results["rows"]])
    rows = [["before", *score_cells([before], worst), "", "", ""]]
    for name, group in groups.items():
        seconds = f"{max(row['seconds'] for row in group):.0f}"
        scores = score_cells([row["after"] for row in group], worst)
        rows.append([name, *scores, *cells.change_cells(group), seconds])
    made = caption(results["machine"], "forgetting.linears")
    title = f"{results['concept']}, {results['epochs']} epochs of Adam. "
    title += f"Images to forget: {cells.count(results['images'])}."
    header = ["LoRA on", "named", "answered instead", *cells.HEADER, "seconds"]
    return f"{made}\n\n{title}\n\n{table_of(header, rows)}"


def score_cells(scores: list[dict[str, Any]], question: str) -> list[str]:
    named = over_seeds(cells.naming_of(one, question)["share"] for one in scores)
    return [named, cells.instead(scores, question), *cells.score_cells(scores)]


if __name__ == "__main__":
    main()
