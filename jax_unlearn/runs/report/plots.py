"""Plots of the report as inline SVG, whose axes and text take the page's colour."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_unlearn.runs.report.sweep_files import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stands for the colour of the page's text, and is replaced by it in the SVG.
INK = "#010203"
# Told apart with any colour vision, on light and dark pages (Okabe and Ito).
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#888888"
GROUPS = {"forget": ORANGE, "counterpart": BLUE, "others": GRAY}
# matplotlib types the names of all its settings.
STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "jax_unlearn",
    "font.size": 10,
    "font.family": "sans-serif",
}


def svg(figure: "Figure") -> str:
    """A figure as SVG that scales with the page, without what would differ between two calls."""
    import matplotlib

    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        for text in legend.get_texts():
            text.set_color(INK)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    found = buffer.getvalue()
    found = found[found.index("<svg") :].replace(INK, "currentColor")
    # Without metadata; the size is that of the page, by the view box.
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", found, count=1).replace(
        ' height="', ' data-height="', 1
    )


def panel(width: float, height: float, columns: int = 1) -> "tuple[Figure, Sequence[Axes]]":
    """A figure with axes side by side."""
    # Here, since a run that is refused plots nothing.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def history(path: Path) -> str:
    """The terms of the loss by epoch."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figure, (axes,) = panel(6.0, 2.6)
    for term in ("total", "forget", "preserve", "weight"):
        axes.plot([row[term] for row in rows], label=term, lw=2 if term == "total" else 1.2)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)
    return svg(figure)


def few_shot(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Accuracy by number of labelled images.

    Args:
        curves: [mean, least, most] by number of labelled images, for each curve's name.
    """
    figure, (axes,) = panel(4.6, 2.8)
    shots: list[int] = []
    for name, curve in curves.items():
        shots = [int(k) for k in curve]
        mean, least, most = zip(*(curve[str(k)] for k in shots), strict=True)
        axes.plot(shots, mean, marker="o", label=name)
        axes.fill_between(shots, least, most, alpha=0.2)
    axes.axhline(0.5, color=GRAY, lw=1, ls=":")
    axes.set(xscale="log", xlabel="labelled images of each", ylabel="balanced accuracy")
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.minorticks_off()
    axes.set_ylim(0.3, 1.03)
    axes.legend(frameon=False)
    return svg(figure)


def relearning(curves: Mapping[str, Mapping[int, float]]) -> str:
    """TPR − FPR by number of steps of fine-tuning, for each curve's name."""
    figure, (axes,) = panel(4.6, 2.8)
    for name, curve in curves.items():
        axes.plot([*curve], [*curve.values()], marker="o", ms=4, label=name)
    axes.axhline(0, color=GRAY, lw=1, ls=":")
    axes.set(xlabel="steps of fine-tuning", ylabel="TPR − FPR")
    axes.set_ylim(-0.2, 1.03)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def embedding_map(groups: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The images before and after the edit, by group, on the same axes."""
    figure, axes = panel(6.4, 2.8, 2)
    for one, when in zip(axes, ("before", "after"), strict=True):
        for group in ("others", "counterpart", "forget"):
            points = groups[group][when]
            if points:
                x, y = zip(*points, strict=True)
                one.scatter(x, y, s=10, color=GROUPS[group], alpha=0.6, label=names[group])
        one.set_title(when, fontsize=10)
        one.set_xticks([])
        one.set_yticks([])
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    axes[0].legend(frameon=False, fontsize=8, loc="best")
    return svg(figure)


def moved(classes: Mapping[str, float]) -> str:
    """How far each class moved, as bars, the class that moved most at the top."""
    names, values = [*classes], [*classes.values()]
    figure, (axes,) = panel(4.6, 0.5 + 0.25 * len(names))
    axes.barh(range(len(names)), values, color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("relative distance")
    return svg(figure)


def trade_off(rows: list[dict[str, Any]]) -> str:
    """The settings of a sweep: what is still named against how far the rest moved."""
    figure, (axes,) = panel(4.6, 3.2)
    draw(axes, rows)
    return svg(figure)
