"""The default setting with each optimiser, on concepts beside those of `targets`.

The three large tables of docs/results/forgetting.md have the optimisers for their own concepts.
"""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks.forgetting import cells
from benchmarks.forgetting.targets import brief, machine, make_bench
from benchmarks.markdown import caption, over_seeds, table_of
from jax_unlearn.runs.settings.config import Optimizer

RESULTS = Path(__file__).parents[1] / "results" / "optimisers.json"
CONCEPTS = ("cat", "gray", "blue circle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=[*CONCEPTS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    results: dict[str, Any] = {"machine": machine(), "concepts": []}
    for concept in options.concepts:
        bench, rows = make_bench(concept, console), []
        for optimizer in get_args(Optimizer):
            rows.append(bench.run({"optimizer": optimizer}, seed=0))
            seconds = rows[-1]["seconds"]
            console.print(f"{concept}, {optimizer}, {seconds:.1f} s: {brief(rows[-1]['after'])}")
        one = {"concept": concept, "images": bench.images(), "before": bench.before}
        results["concepts"].append(one | {"rows": rows})
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """Every concept with each optimiser, by the worst naming question."""
    rows = []
    for concept in results["concepts"]:
        groups = cells.by_label(concept["concept"], concept["rows"])
        worst = cells.worst(concept["before"], [row["after"] for row in concept["rows"]])
        name = f"{concept['concept']}, {cells.count(concept['images'])}"
        rows.append([name, "before", *optimiser_cells([concept["before"]], worst), "", ""])
        for group in groups.values():
            optimiser = cells.OPTIMISERS[group[0]["setting"]["optimizer"]]
            scores = optimiser_cells([row["after"] for row in group], worst)
            rows.append(["", optimiser, *scores, *cells.change_cells(group)])
    header = ["concept, images to forget", "optimiser", "named", "answered instead", *cells.HEADER]
    return f"{caption(results['machine'], 'forgetting.optimisers')}\n\n{table_of(header, rows)}"


def optimiser_cells(scores: list[dict[str, Any]], question: str) -> list[str]:
    named = over_seeds(cells.naming_of(one, question)["share"] for one in scores)
    return [named, cells.instead(scores, question), *cells.score_cells(scores)]


if __name__ == "__main__":
    main()
