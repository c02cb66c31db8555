"""The default setting on linear_fc2, on linear_fc1 and on both: what it forgets, and the price."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks.forgetting.targets import brief, machine, make_bench

RESULTS = Path(__file__).parents[1] / "results" / "linears.json"
# linear_fc1 takes a fifth of a second a step, and its loss is flat by then.
EPOCHS = 500
CHOICES = (("linear_fc2",), ("linear_fc1",), ("linear_fc1", "linear_fc2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", default="astronaut")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    rows, before = [], {}
    for linears in CHOICES:
        bench = make_bench(options.concept, console, linears=linears)
        before = bench.before
        rows.append(
            {"linears": linears, **bench.run({"epochs": EPOCHS, "optimizer": "adam"}, seed=0)}
        )
        console.print(f"{linears}, {rows[-1]['seconds']:.1f} s: {brief(rows[-1]['after'])}")
    results = {"machine": machine(), "concept": options.concept, "epochs": EPOCHS}
    results |= {"before": before, "rows": rows}
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
