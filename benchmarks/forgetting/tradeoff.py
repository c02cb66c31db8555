"""Forgetting against drift on the shipped model: the sweep's default values and every target."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.forgetting.targets import machine
from benchmarks.markdown import caption, over_seeds, refuse_equal, table_of
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.evaluate.score import Score
from jax_unlearn.objective.targets import TARGETS
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.report.sweep_files import draw
from jax_unlearn.runs.settings.config import build
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runs.sweep import explore, forgets, selective

RESULTS = Path(__file__).parents[1] / "results" / "tradeoff.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["astronaut", "triangle", "red triangle"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console, found = Console(stderr=True), {}
    for concept in options.concepts:
        config = demo_config(Demo(concept=concept))
        extracted = QwenImages(config, console).extract()
        judge = judge_of(extracted, config.samples)
        tries = build(SweepConfig, {"target_kinds": TARGETS}, config)
        found[concept] = explore(extracted, judge, tries, console).rows()
        chosen = next(row for row in found[concept] if row["chosen"])
        console.print(f"{concept}: {len(found[concept])} settings, chosen {chosen}")
    figure = Figure(figsize=(4.2 * len(found), 4), layout="constrained")
    for axes, (concept, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0],
                                     found.items(), strict=True):  # fmt: skip
        draw(axes, rows)
        axes.set_title(concept)
    figure.savefig(options.out.with_suffix(".png"), dpi=110)
    results = {"machine": machine(), "concepts": found}
    options.out.write_text(json.dumps(results, indent=1) + "\n")


HELD_OUT = (
    "held_out_before",
    "held_out_forget",
    "held_out_selectivity",
    "held_out_preserve",
    "held_out_drift",
)
VARIED = ("target", "lambda_forget", "lambda_preserve", "rank")


def table(results: dict[str, Any]) -> str:
    """The setting chosen by the sweep for each concept, and its scores on held-out images."""
    rows, measured = [], []
    for concept, settings in results["concepts"].items():
        chosen = next(row for row in settings if row["chosen"])
        shares = {key: chosen[key] for key in HELD_OUT}
        measured.append((concept, shares))
        setting = [str(chosen[key]) for key in VARIED]
        counts = [f"{len(settings)}", *setting]
        score = Score(**{f.name: chosen[f"held_out_{f.name}"] for f in fields(Score)})
        met = "yes" if forgets(score, None) and selective(score) else "**no setting does**"
        cells = (over_seeds([share]) for share in shares.values())
        rows.append([concept, *counts, *cells, met])
    refuse_equal("tradeoff", measured)
    header = ["concept", "settings", "chosen: target", "λ_f", "λ_p", "rank"]
    header += ["named by a probe before, %", "after, %", "selectivity, %", "preserve, right, %"]
    header += ["drift, %", "forgets enough and is selective"]
    made = caption(results["machine"], "forgetting.tradeoff")
    return f"{made}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
