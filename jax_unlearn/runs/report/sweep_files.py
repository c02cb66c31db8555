"""Write a sweep's files: the table as CSV and JSON, and the plot."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_unlearn.runs.sweep import TradeOff

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_tradeoff(directory: Path, found: TradeOff) -> None:
    """Write sweep.csv, sweep.json and sweep.png."""
    rows = found.rows()
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (directory / "sweep.csv").write_text(table.getvalue())
    (directory / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows).savefig(directory / "sweep.png", dpi=130)


def plot(rows: list[dict[str, Any]]) -> "Figure":
    """A figure of the whole sweep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw(figure.subplots(), rows)
    return figure


def draw(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """Plot drift against forgetting, one point per setting, with a line along the front."""

    def places(chosen: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        xs, ys = ([100 * row[f"held_out_{k}"] for row in chosen] for k in ("forget", "drift"))
        return xs, ys

    for kind in sorted({row["target"] for row in rows}):
        own = [row for row in rows if row["target"] == kind]
        axes.plot(*places(own), "o", ms=5, alpha=0.5, mew=0, label=kind)
    front = sorted((r for r in rows if r["front"]), key=lambda r: r["held_out_forget"])
    axes.plot(*places(front), ".-", color="0.5", lw=1, ms=4, label="front")
    axes.plot(*places([r for r in rows if r["chosen"]]), "*", ms=14, mec="k", label="chosen")
    axes.axvline(100 * rows[0]["held_out_chance"], color="0.5", ls=":", lw=1, label="chance")
    axes.set(xlabel="forget, still named, %", ylabel="drift of what is kept, %")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
