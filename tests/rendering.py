"""Plots of a kind are rendered once in a process of tests: it is half the time of a tiny run.

`tests/shared.py` puts `of_its_kind` in place of `plots.svg`; the tests of the page itself take
`rendered`, as do all processes of their own.
"""

from matplotlib.figure import Figure

from jax_unlearn.runs.report import plots

rendered = plots.svg
# By what is drawn in each of its axes, but for the numbers.
kinds: dict[tuple[object, ...], str] = {}


def of_its_kind(figure: Figure) -> str:
    """The first figure of this process with the same axes and as many marks in them, as SVG."""
    kind = tuple(
        (
            *(axes.get_xscale(), axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()),
            *(len(axes.lines), len(axes.collections), len(axes.patches), len(axes.texts)),
        )
        for axes in figure.axes
    )
    if kind not in kinds:
        kinds[kind] = rendered(figure)
    return kinds[kind]
