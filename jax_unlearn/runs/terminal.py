"""Tables printed at the end of a command, on terminals of any encoding."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich.table import Table

from jax_unlearn.attacks.registry import EDITED
from jax_unlearn.data.scan import printable
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.report.page import VLM_ROWS, ZERO_SHOT_ROWS
from jax_unlearn.runs.report.verdict import percent, rates
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.saved_statistics import unsaved_statistics
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.sweep import TradeOff
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.pipe_console import PipeConsole

# Number of labelled images of each side whose readers are shown.
FEW = 10
# Above this share readers of a concept count as finding it.
FOUND = 0.75
# Number of images of a concept with which the target stand_in hides it well.
ENOUGH = 250


def show_unencodable() -> None:
    """Print characters that the terminal's encoding does not have as escapes like \\u65e5."""
    for stream in (sys.stdout, sys.stderr):
        # A notebook's stream is not a TextIOWrapper, and takes every character.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class LiteralTable(Table):
    """A table whose cells have control characters as escapes."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(printable(cell) for cell in cells), **options)


def print_table(table: Table) -> None:
    """Print a table whose texts are shown literally: names may look like Rich's markup or emoji."""
    PipeConsole(markup=False, emoji=False).print(table)


def finish(metrics: Metrics, out: Path) -> None:
    """Print the summary.

    Raises:
        UserError: training stopped early.
    """
    for file in metrics["samples"]["skipped"]:
        print(printable(f"skipped {file}"), file=sys.stderr)
    for line in metrics["samples"].get("left_out", ()):
        print(printable(line), file=sys.stderr)
    # Runs of earlier versions do not say.
    if "statistics" in metrics and (line := unsaved_statistics(metrics["statistics"])):
        print(line, file=sys.stderr)
    if not (found := metrics["search"])["reached"]:
        fall, trials = percent(found["fall"]), found["trials"]
        print(
            f"warning: the forget norm fell by {fall} only, in {trials} trainings", file=sys.stderr
        )
    for warning in metrics["warnings"]:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    print_table(summary(metrics))
    print("\n".join(map(printable, made(metrics, out))))
    if metrics["stopped"]:
        raise UserError(f"{out}: {metrics['stopped']}; the last good adapter was saved")


def made(metrics: Metrics, out: Path) -> list[str]:
    """What a run has made, where, and what to do next."""
    adapter = metrics["adapter"]
    linears = ", ".join(adapter["targets"])
    steps = {f"open {out / 'report.html'}": "figures, curves and images"}
    if "paths" in metrics and not {"vlm", "zero_shot"} & set(metrics):
        steps[f"jax-unlearn evaluate {out} --vlm"] = "ask the model itself, which was not done yet"
    if findable(metrics):
        steps["jax-unlearn run … --target stand_in"] = (
            "labelled images still find it; there are enough images to hide it from a few"
        )
    steps[f"jax-unlearn export {out} --out DIRECTORY"] = "the changed model, to serve"
    return [f"{out}: a change of rank {adapter['rank']} of {linears}", *next_steps(steps)]


def findable(metrics: Metrics) -> bool:
    """Whether few labelled images find a concept again, and stand_in could prevent that."""
    found = metrics.get("reidentification", ())
    after = [read[2] for one in found if one["fresh"] and (read := few_shot(one))]
    enough = metrics["samples"]["forget"] >= ENOUGH * max(1, len(found))
    return metrics["optimizer"] != STAND_IN and enough and any(score > FOUND for score in after)


def next_steps(steps: dict[str, str]) -> list[str]:
    """What to do next: commands, and what each gives."""
    width = max(map(len, steps))
    return ["next:", *(f"  {step:<{width}}  {what}" for step, what in steps.items())]


def finish_sweep(found: TradeOff, config: SweepConfig) -> None:
    """Print the front with the chosen setting, warnings, and the path of the table."""
    settings = [asdict(point.setting) for point in found.points]
    varied = [name for name in settings[0] if len({s[name] for s in settings}) > 1]
    scores = ("forget, named before", "after", "selectivity", "preserve, right", "drift of it")
    table = LiteralTable("", *scores, *(name.replace("_", " ") for name in varied))
    for point in sorted(found.front, key=lambda p: (p.score.forget, p.score.drift)):
        score = point.score
        shares = score.before, score.forget, score.selectivity, score.preserve, score.drift
        shown = (percent(share) for share in shares)
        values = (str(getattr(point.setting, name)) for name in varied)
        table.add_row("chosen" if point is found.chosen else "", *shown, *values)
    print_table(table)
    if not found.reached:
        print(
            "warning: no setting forgets enough and keeps what else is there; the chosen one "
            "forgets most",
            file=sys.stderr,
        )
    if found.chosen.score.before <= found.chosen.score.chance:
        print(
            "warning: before the edit the concept is named no more often than by a guess, so the "
            "choice says nothing about forgetting; choose another --concept",
            file=sys.stderr,
        )
    out = config.execution.out
    told = f"{out}: {len(found.points)} settings in sweep.csv; the chosen one is its config.json"
    print(printable(told))
    steps = {
        f"open {out / 'sweep.png'}": "the trade-off between forgetting and keeping",
        f"jax-unlearn run --config {out / 'config.json'} --out RUN": "the chosen setting, as a run",
    }
    print("\n".join(map(printable, next_steps(steps))))


def finish_attacks(report: Metrics, out: Path) -> None:
    """Print the strongest setting of each attack beside its controls, and what was not tried."""
    table = LiteralTable("attack, where it gains most", "edited", "others", "controls")
    for name, found in report["attacks"].items():
        for line in found["left_out"]:
            print(printable(f"{name}: {line}"), file=sys.stderr)
        if found["says_nothing"]:
            some = len(found["says_nothing"])
            print(
                f"{name}: {some} settings say nothing, as the model before the edit does not name "
                "the concept there either",
                file=sys.stderr,
            )
        if any(row.get("still_rising") for row in found["rows"] if row["subject"] == EDITED):
            print(
                f"{name}: TPR − FPR was still rising at the end of the budget; use --budget full",
                file=sys.stderr,
            )
        if not (best := found["strongest"]):
            continue
        setting = ", ".join(f"{key} {value}" for key, value in best["setting"].items())
        others = best["edited"].get("others")
        table.add_row(
            f"{name}: {setting}",
            rates(best["edited"]),
            "" if others is None else percent(others),
            "; ".join(f"{who} {rates(row)}" for who, row in best["controls"].items()),
        )
    for name, reason in report["not_run"].items():
        print(printable(f"{name}: not run: {reason}"), file=sys.stderr)
    print_table(table)
    print(
        "edited and controls: share of the concept's images / of the class it is moved onto that "
        "are named as the concept; or the balanced accuracy of a reader, or the AUC of a ranking, "
        "each 50 % for a guess"
    )
    print(printable(f"optimised against by the fit: {report['optimised_against']}"))
    print("\n".join(map(printable, report["limits"])))
    print(printable(str(out / "attacks.json")))


def summary(metrics: Metrics) -> Table:
    """A table of the metrics before and after: zero-shot accuracy, probes, the model's answers."""
    shown = metrics["zero_shot"]["on"] if "zero_shot" in metrics else "images"
    table = LiteralTable(f"held-out {shown}", "before", "after", "chance")
    if zero_shot := metrics.get("zero_shot"):
        add_zero_shot(table, zero_shot)
    if "paths" in metrics:
        forget, preserve = metrics["forget"], metrics["preserve"]
        chance = f"{metrics['chance']['preserve']:.3f}"
        table.add_row("a probe fitted before the edit names it", *shares(forget, "chance"))
        again = shares(metrics["refitted"])
        table.add_row("a probe fitted after the edit names it", *again, f"{forget['chance']:.3f}")
        table.add_row("preserve, right by the first probe", *shares(preserve), chance)
        # Runs of earlier versions do not have them.
        for found in metrics.get("reidentification", ()):
            if read := few_shot(found):
                table.add_row(*few_shot_row(found, *read))
    for before, after in named(metrics, "named"):
        table.add_row(f"the model names it: {before['question']}", *cells(before, after))
        if said := instead(after):
            table.add_row("  and says instead", "", said, "")
    for before, after in named(metrics, "confirmed"):
        table.add_row(f"the model says yes: {before['question']}", *cells(before, after))
    for row in benchmark_rows(metrics):
        table.add_row(*row)
    if vlm := metrics.get("vlm"):
        for key, text in VLM_ROWS:
            shown = [percent(vlm[when][key]) for when in ("before", "after")]
            table.add_row(f"the model, {text}", *shown, "")
    return table


def benchmark_rows(metrics: Metrics) -> Iterator[tuple[str, str, str, str]]:
    """A row for each split, task and measure of a published benchmark."""
    found = metrics.get("benchmark", {"name": "", "splits": {}})
    for split, tasks in found["splits"].items():
        for task, measures in tasks.items():
            for name, both in measures.items():
                what = f"{found['name']}, {split}, {task}: {name}"
                yield what, f"{both['before']:.3f}", f"{both['after']:.3f}", ""


def few_shot(found: Metrics) -> tuple[int, float, float] | None:
    """(labelled images, at most FEW, accuracy before, and after); None if it was not measured."""
    curve = found["few_shot"].get("mean", {})
    known = [k for k in curve if int(k) <= FEW]
    if not known:
        return None
    k = max(known, key=int)
    return int(k), curve[k]["before"][0], curve[k]["after"][0]


def few_shot_row(
    found: Metrics, shots: int, before: float, after: float
) -> tuple[str, str, str, str]:
    """How well a few labelled images tell a concept from its counterpart."""
    images = (
        f"{shots} labelled images of each tell" if shots > 1 else "1 labelled image of each tells"
    )
    what = f"{images} {found['concept']} from {found['counterpart']}"
    return what, f"{before:.3f}", f"{after:.3f}", "0.500"


def add_zero_shot(table: Table, zero_shot: Metrics) -> None:
    """Add zero-shot accuracy on each forgotten class, all others, neighbours, and other data."""
    for name, share in zero_shot["classes"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {name} (to forget)", *both, percent(zero_shot["chance"]))
    for key, text in ZERO_SHOT_ROWS:
        both = (percent(zero_shot["before"][key]), percent(zero_shot["after"][key]))
        table.add_row(f"zero-shot, {text}", *both, "")
    for folder, share in zero_shot["other_data"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {folder}", *both, "")


def instead(named: Metrics) -> str:
    """The most frequent other answers with their shares."""
    said = {answer or "(no answer)": share for answer, share in named["instead"].items()}
    return ", ".join(f"{answer} {share:.2f}" for answer, share in said.items())


def shares(scores: dict[str, float], *more: str) -> list[str]:
    return [f"{scores[key]:.3f}" for key in ("accuracy_before", "accuracy_after", *more)]


def named(metrics: Metrics, kind: str) -> list[tuple[Metrics, Metrics]]:
    """The scores of each question of a kind, before and after."""
    vlm = metrics.get("vlm")
    return [*zip(vlm["before"][kind], vlm["after"][kind], strict=True)] if vlm else []


def cells(before: Metrics, after: Metrics) -> tuple[str, str, str]:
    """Share before, share after and chance; no share after where that says nothing."""
    share, chance = before["share"], before["chance"]
    second = "says nothing" if share <= chance else f"{after['share']:.3f}"
    return f"{share:.3f}", second, f"{chance:.3f}"
