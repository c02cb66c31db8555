"""Tables and the plot of the benchmark of the stand-in target: docs/results/stand-in.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.forgetting import cells
from benchmarks.markdown import caption, over_seeds, refuse_equal, table_of

SHOTS = ("1", "3", "10", "30", "100")
COMMAND = "forgetting.stand_in"


def plot(results: dict[str, Any], path: Path, settings: Sequence[str]) -> None:
    """The few-shot curves of the concepts that had no part, and the number of images."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, concept in zip(axes, results["unseen"], strict=False):
        for name in settings:
            rows = [row for row in concept["rows"] if row["setting"] == name]
            axis.plot(*curve_of([row["readers"] for row in rows], "after"), marker=".", label=name)
        for one in results["references"]:
            if one["concept"] == concept["concept"]:
                axis.plot(*curve_of([one["readers"]], "before"), "k--", lw=1, label=one["name"])
        axis.axhline(0.5, color="gray", lw=1, ls=":")
        axis.set(xscale="log", title=concept["concept"], xlabel="labelled images of each")
        axis.set_ylim(0.45, 1.02)
    axes[0].set_ylabel("balanced accuracy, best reader")
    axes[0].legend(frameon=False, fontsize=7)
    rows = results["growth"]
    images = [row["train"] for row in rows]
    linear = [row["readers"]["refitted"]["mean"]["linear"]["after"]["balanced"] for row in rows]
    axes[3].plot(images, linear, marker=".", label="measured")
    axes[3].plot(images, [row["readers"]["expected_linear"] for row in rows], "k--", label="law")
    axes[3].set(xscale="log", title="a linear reader", xlabel="images that the edit is fitted on")
    axes[3].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def curve_of(readers: Sequence[dict[str, Any]], when: str) -> tuple[list[int], list[float]]:
    """(numbers of labelled images, mean score over the seeds) on mean embeddings."""
    known = [k for k in SHOTS if all(k in one["few_shot"]["mean"] for one in readers)]
    scores = [
        float(np.mean([one["few_shot"]["mean"][k][when][0] for one in readers])) for k in known
    ]
    return [int(k) for k in known], scores


def table(results: dict[str, Any]) -> str:
    """Targets × what is named, kept and found again, one section per concept."""
    sections = [caption(results["machine"], COMMAND)]
    header = ["target", "rank", "named", "answered instead", "selectivity"]
    header += ["near neighbours", "others"]
    header += [f"{k} labelled" for k in SHOTS]
    header += ["linear", "1-NN", "RBF", "drift, %", "class that moved most, %"]
    for part, words in (("unseen", "no part in any choice"), ("concepts", "part in the design")):
        for concept in results[part]:
            first = concept["rows"][0]["readers"]
            pair = f"{first['concept']} → {first['counterpart']}"
            groups: dict[str, list[dict[str, Any]]] = {}
            for row in concept["rows"]:
                groups.setdefault(row["setting"], []).append(row)
            refuse_equal(pair, [(row["setting"], row["readers"]) for row in concept["rows"]])
            rows = [["before", "", *answers(concept["before"], concept["before"]),
                     *found_cells([first], "before"), "", ""]]  # fmt: skip
            for name, own in groups.items():
                said = answers(concept["before"], own[0]["answers"])
                cells_ = found_cells([row["readers"] for row in own], "after")
                moved = [over_seeds(row[key] for row in own) for key in ("drift", "most_moved")]
                rows.append([name, str(own[0]["rank"]), *said, *cells_, *moved])
            for one in results["references"]:
                if one["concept"] == concept["concept"]:
                    found = found_cells([one["readers"]], "before")
                    rows.append([f"*{one['name']}*", *[""] * 6, *found, "", ""])
            images = concept["images"]
            title = (
                f"### {pair}\n\nFitted on {images['forget']} images and {images['stand_in']} of "
            )
            tests = first["images"]
            title += (
                f"the counterpart; {tests['forget']} and {tests['counterpart']} held out; {words}."
            )
            sections += [title, table_of(header, rows)]
    return "\n\n".join(sections)


def answers(before: dict[str, Any], scores: dict[str, Any]) -> list[str]:
    """Named by the worst question, what is said instead, selectivity, near neighbours, others."""
    worst = cells.worst(before, [scores])
    named = cells.naming_of(scores, worst)["share"]
    kept = [over_seeds([scores[key]]) for key in ("selectivity", "neighbours", "others")]
    return [over_seeds([named]), cells.instead([scores], worst), *kept]


def found_cells(readers: Sequence[dict[str, Any]], when: str) -> list[str]:
    """Few-shot scores by means · max · spread, and refitted readers, all in per cent."""

    def cell(values: Sequence[Sequence[float]]) -> str:
        return " · ".join(f"{100 * float(np.mean(own)):.0f}" for own in values if own) or "–"

    found = []
    for k in SHOTS:
        pools = [
            [one["few_shot"][pool][k][when][0] for one in readers if k in one["few_shot"][pool]]
            for pool in readers[0]["few_shot"]
        ]
        found.append(cell(pools))
    for name in ("linear", "nearest_neighbour", "rbf"):
        found.append(
            cell(
                [
                    [one["refitted"][pool][name][when]["balanced"] for one in readers]
                    for pool in readers[0]["refitted"]
                ]
            )
        )
    return found


def growth_table(results: dict[str, Any]) -> str:
    """The number of images that the edit is fitted on, against a linear reader and the law."""
    rows = [
        [
            str(row["train"]),
            *found_cells([row["readers"]], "after")[2:6],
            f"{100 * row['readers']['expected_linear']:.0f}",
        ]
        for row in results["growth"]
    ]
    header = ["images of each", "10 labelled", "30 labelled", "100 labelled", "linear", "law"]
    return f"{caption(results['machine'], COMMAND)}\n\n{table_of(header, rows)}"
