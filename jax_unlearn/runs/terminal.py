"""Tables that are printed when a command ends."""

import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jax_unlearn.runs.report.page import VLM_ROWS, ZERO_SHOT_ROWS, percent
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.sweep import TradeOff
from jax_unlearn.runtime.errors import UserError


def finish(metrics: Metrics, out: Path) -> None:
    """Print the summary, and fail if training had to stop."""
    for file in metrics["samples"]["skipped"]:
        print(f"skipped {file}", file=sys.stderr)
    if not (found := metrics["search"])["reached"]:
        fall, trials = percent(found["fall"]), found["trials"]
        print(
            f"warning: the forget norm fell by {fall} only, in {trials} trainings", file=sys.stderr
        )
    Console().print(summary(metrics))
    print(f"{out / 'report.html'}")
    if metrics["stopped"]:
        raise UserError(f"{out}: {metrics['stopped']}; the last good adapter was saved")


def finish_sweep(found: TradeOff, config: SweepConfig) -> None:
    """Print the chosen setting, the front, and how to run it."""
    settings = [asdict(point.setting) for point in found.points]
    varied = [name for name in settings[0] if len({s[name] for s in settings}) > 1]
    scores = ("forget, still named", "preserve, right", "drift of it")
    table = Table("", *scores, *(name.replace("_", " ") for name in varied))
    for point in sorted(found.front, key=lambda p: (p.score.forget, p.score.drift)):
        shown = (percent(s) for s in (point.score.forget, point.score.preserve, point.score.drift))
        values = (str(getattr(point.setting, name)) for name in varied)
        table.add_row("chosen" if point is found.chosen else "", *shown, *values)
    Console().print(table)
    if not found.reached:
        print("warning: no setting forgets enough; the chosen one forgets most", file=sys.stderr)
    print(config.out / "sweep.csv")


def summary(metrics: Metrics) -> Table:
    """Before and after: the worst path by the probe fitted on the original features, or names."""
    shown = metrics["zero_shot"]["on"] if "zero_shot" in metrics else "images"
    table = Table(f"held-out {shown}", "before", "after", "chance")
    if zero_shot := metrics.get("zero_shot"):
        add_zero_shot(table, zero_shot)
    if "paths" in metrics:
        forget, preserve = metrics["forget"], metrics["preserve"]
        table.add_row("forget, still named by a probe", *shares(forget, "chance"))
        chance = f"{metrics['chance']['preserve']:.3f}"
        table.add_row("preserve, right by the same probe", *shares(preserve), chance)
    for before, after in zip(*named(metrics), strict=True):
        share = (f"{before['share']:.3f}", f"{after['share']:.3f}", f"{before['chance']:.3f}")
        table.add_row(f"the model names it: {before['question']}", *share)
    if vlm := metrics.get("vlm"):
        for key, text in VLM_ROWS:
            shown = [percent(vlm[when][key]) for when in ("before", "after")]
            table.add_row(f"the model, {text}", *shown, "")
    return table


def add_zero_shot(table: Table, zero_shot: Metrics) -> None:
    """Zero-shot accuracy: each forgotten class, all others, their neighbours, other data."""
    for name, share in zero_shot["classes"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {name} (to forget)", *both, percent(zero_shot["chance"]))
    for key, text in ZERO_SHOT_ROWS:
        both = (percent(zero_shot["before"][key]), percent(zero_shot["after"][key]))
        table.add_row(f"zero-shot, {text}", *both, "")
    for folder, share in zero_shot["other_data"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {folder}", *both, "")


def shares(scores: dict[str, float], *more: str) -> list[str]:
    return [f"{scores[key]:.3f}" for key in ("accuracy_before", "accuracy_after", *more)]


def named(metrics: Metrics) -> tuple[list[Metrics], list[Metrics]]:
    vlm = metrics.get("vlm")
    return (vlm["before"]["named"], vlm["after"]["named"]) if vlm else ([], [])
