"""The command report: one page that compares several runs, from their files alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_unlearn.attacks.record import read_record
from jax_unlearn.runs.report import plots
from jax_unlearn.runs.report.page import concept, environment, relearning_curves
from jax_unlearn.runs.report.verdict import finders, percent, rates, verdict
from jax_unlearn.runs.settings.config import read_config, to_json
from jax_unlearn.runtime.atomic_files import fresh_file
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import encodable

# Of a figure that a run does not have.
MISSING = "–"
# Settings that say where a run is, and not what it did.
ELSEWHERE = {"out", "overwrite", "resume", "track", "workers", "pictures", "save_statistics"}


@dataclass(frozen=True)
class Report:
    """Write a page that compares runs: verdicts, figures, curves, and the settings that differ."""

    compare: tuple[Path, ...]
    """Directories of two or more runs."""
    out: Path = Path("comparison.html")
    """The page."""
    overwrite: bool = False
    """Replace --out if it exists."""


@dataclass(frozen=True)
class Compared:
    """A run by its files."""

    name: str
    concept: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    attacks: Mapping[str, Any] | None


def write_comparison(options: Report) -> None:
    """Write the page.

    Raises:
        UserError: fewer than two runs are given, one is none or was changed, or the page exists.
    """
    if len(options.compare) < 2:
        raise UserError("--compare: give the directories of at least two runs")
    runs = [read_run(directory) for directory in options.compare]
    with fresh_file(options.out, options.overwrite) as path:
        path.write_text(comparison(runs), encoding="utf-8")


def read_run(directory: Path) -> Compared:
    config = read_config(directory)
    metrics = read_sealed(directory / "metrics.json")
    return Compared(
        str(directory),
        concept(config, metrics),
        to_json(config),
        metrics,
        read_record(directory),
    )


def comparison(runs: Sequence[Compared]) -> str:
    """The page of some runs."""
    pages = [
        {
            "run": one,
            "verdict": verdict(one.metrics, one.concept, finders(one.metrics, one.attacks)),
        }
        for one in runs
    ]
    names = [*dict.fromkeys(key for one in runs for key in one.settings)]
    differing = {
        key: [one.settings.get(key) for one in runs]
        for key in names
        if key not in ELSEWHERE and len({str(one.settings.get(key)) for one in runs}) > 1
    }
    curves = {
        f"{one.name}": {k: s["after"] for k, s in first["few_shot"]["mean"].items()}
        for one in runs
        if (first := next(iter(one.metrics.get("reidentification", ())), None))
        and first["few_shot"]
    }
    relearned = {
        f"{one.name}, {most} images": by["edited"]
        for one in runs
        if one.attacks and (found := relearning_curves(one.attacks))
        for most, by in [found]
    }
    page = (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            title="Runs compared",
            runs=runs,
            pages=pages,
            figures=figures(runs),
            differing=differing,
            few_shot=plots.few_shot(curves) if curves else "",
            relearning=plots.relearning(relearned) if relearned else "",
        )
    )
    return encodable(page)


Figure = Callable[[Mapping[str, Any]], str]


def answered(key: str) -> Figure:
    return lambda m: percent(m["vlm"]["after"][key])


def found_by(labelled: str) -> Figure:
    """The best reader of mean embeddings with some labelled images, of the worst concept."""
    return lambda m: percent(
        max(one["few_shot"]["mean"][labelled]["after"][0] for one in m["reidentification"])
    )


def named(m: Mapping[str, Any]) -> str:
    return percent(max(one["share"] for one in m["vlm"]["after"]["named"]))


def drift(m: Mapping[str, Any]) -> str:
    return f"{max(path['drift']['relative'] for path in m['paths'].values()):.4f}"


FIGURES: dict[str, Figure] = {
    "named by a probe fitted before": lambda m: percent(m["forget"]["accuracy_after"]),
    "named by a probe fitted after": lambda m: percent(m["refitted"]["accuracy_after"]),
    "named by the model, worst question": named,
    "naming questions on preserve images, right": answered("others"),
    "what else the forget images show, right": answered("selectivity"),
    "preserve, right by the first probe": lambda m: percent(m["preserve"]["accuracy_after"]),
    "found again with 10 labelled images": found_by("10"),
    "found again with 100 labelled images": found_by("100"),
    "drift, worst projector": drift,
    "rank": lambda m: str(m["adapter"]["rank"]),
    "seconds of the fit": lambda m: f"{m['seconds']['optimise']:.1f}",
}


def figures(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Rows of a table: what, and its value for each run; rows that no run has are left out."""
    rows = [(what, [known(of, one.metrics) for one in runs]) for what, of in FIGURES.items()]
    rows = [(what, cells) for what, cells in rows if set(cells) != {MISSING}]
    attacks = [one.attacks["attacks"] if one.attacks else {} for one in runs]
    for name in dict.fromkeys(name for own in attacks for name in own):
        best = [own.get(name, {}).get("strongest") for own in attacks]
        rows.append((f"attack: {name}", [rates(b["edited"]) if b else MISSING for b in best]))
    return rows


def known(of: Figure, metrics: Mapping[str, Any]) -> str:
    """A figure of a run; – where the run has no such figure."""
    try:
        return of(metrics)
    except (KeyError, ValueError):
        return MISSING
