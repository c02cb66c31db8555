"""report.html: a self-contained page with what a run achieved, and how that was measured."""

import base64
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from jax_unlearn.attacks.record import read_record
from jax_unlearn.attacks.summary import advantage
from jax_unlearn.data.images import UNREADABLE, ImageFile, read_image, reason
from jax_unlearn.runs.report import plots
from jax_unlearn.runs.report.verdict import finders, percent, rates, verdict, worst_named
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runtime.text_files import encodable

THUMBNAILS = 10
# Names of forgotten classes or requests in a title, and of concepts in a legend.
CLASSES, LEGEND = 5, 2
# Classes whose drift is shown.
MOVED = 12
# A question with fewer wrong answers "yes" has no row of its own.
FALSE_YES = 0.02
SWEEP = "sweep.json"
VLM_ROWS = (
    ("selectivity", "what else the forget images show, right"),
    ("others", "naming questions on preserve images, right"),
    ("neighbours", "naming questions on the nearest classes, right"),
    ("others_rest", "other open questions on preserve images, right"),
    ("yes_no", "yes/no questions on preserve images, right"),
)
ZERO_SHOT_ROWS = (("others", "all other classes"), ("neighbours", "the nearest of them"))

# RUN and DIRECTORY are to be replaced; a path of this machine means nothing where the page is read.
USAGE = """from peft import PeftModel
model = PeftModel.from_pretrained(model, "RUN/adapter")   # in PyTorch, on the original model

jax-unlearn export RUN --out DIRECTORY                    # the changed model, for any server
jax-unlearn compare BASE DIRECTORY IMAGE…                 # is the change in what is served?"""


@dataclass(frozen=True)
class Picture:
    """An image of the page: PNG in base64, its class, and the model's answers before and after."""

    png: str
    label: str
    answers: tuple[str, str] | None


def report(
    directory: Path,
    config: RunConfig,
    metrics: dict[str, Any],
    samples: Sequence[Sequence[ImageFile]],
    answers: str | None = None,
) -> str:
    """Render the page of a run.

    Args:
        directory: the run's directory, with history.jsonl and perhaps attacks.json, sweep.json.
        config: the settings.
        metrics: the content of metrics.json.
        samples: rows of readable images, forget and preserve, of which a few are shown.
        answers: the text of answers.jsonl, if the model was asked.
    """
    attacks = read_record(directory)
    who = finders(metrics, attacks)
    what = concept(config, metrics)
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=f"Forgetting “{what}”",
            concept=what,
            m=metrics,
            verdict=verdict(metrics, what, who),
            finders=who,
            pictures=pictures(samples, metrics, said_about(metrics, answers)),
            vlm=metrics.get("vlm"),
            pairs=pairs_of(metrics),
            false_yes=false_yes(metrics),
            vlm_rows=VLM_ROWS,
            zero_shot=metrics.get("zero_shot"),
            zero_shot_rows=ZERO_SHOT_ROWS,
            attacks=attacks,
            plots=drawn(directory, metrics, attacks),
            settings=to_json(config),
            pct=percent,
            rates=rates,
            usage=USAGE,
        )
    )
    return encodable(page)


def pairs_of(metrics: Mapping[str, Any]) -> dict[str, list[Any]]:
    """(before, after) of each naming question, open and closed."""
    vlm = metrics.get("vlm")
    return {
        k: list(zip(vlm["before"][k], vlm["after"][k], strict=True)) if vlm else []
        for k in ("named", "confirmed")
    }


def false_yes(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """(before, after) of wrong answers "yes": of questions that have some, and of all others."""
    vlm = metrics.get("vlm")
    if not vlm:
        return {"shown": {}, "rest": []}
    both = {q: (vlm["before"]["false_yes"][q], s) for q, s in vlm["after"]["false_yes"].items()}
    shown = {q: shares for q, shares in both.items() if max(shares) >= FALSE_YES}
    return {"shown": shown, "rest": [shares for q, shares in both.items() if q not in shown]}


def drawn(
    directory: Path, metrics: Mapping[str, Any], attacks: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The page's plots, as SVG."""
    found: dict[str, Any] = {"history": plots.history(directory / "history.jsonl")}
    found["few_shot"] = [
        plots.few_shot(
            {when: {k: s[when] for k, s in curve.items()} for when in ("before", "after")}
        )
        if (curve := one["few_shot"].get("mean"))
        else ""
        for one in metrics.get("reidentification", ())
    ]
    found["relearning"] = relearning(attacks) if attacks else ""
    names = map_names(metrics)
    found["maps"] = {
        name: plots.embedding_map(one["groups"], names)
        for name, one in metrics.get("maps", {}).items()
    }
    moved = sorted(metrics.get("drift_by_class", {}).items(), key=lambda item: -item[1])
    found["moved"] = plots.moved(dict(moved[:MOVED])) if moved else ""
    path = directory / SWEEP
    found["trade_off"] = plots.trade_off(json.loads(path.read_text())) if path.is_file() else ""
    return found


def map_names(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the groups of a map are called in its legend."""
    pairs = metrics.get("reidentification", ())
    concepts, onto = (
        listed([*dict.fromkeys(one[who] for one in pairs)], LEGEND)
        for who in ("concept", "counterpart")
    )
    names = {"forget": concepts or "to forget", "counterpart": onto or "counterpart"}
    return names | {"others": "others"}


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def relearning(attacks: Mapping[str, Any]) -> str:
    """The plot of relearning; empty if it was not tried."""
    found = relearning_curves(attacks)
    if found is None:
        return ""
    most, curves = found
    return plots.relearning({f"{who}, {most} images": curve for who, curve in curves.items()})


def relearning_curves(
    attacks: Mapping[str, Any],
) -> tuple[int, dict[str, dict[int, float]]] | None:
    """(largest number of images, TPR − FPR by steps for the edited model and each control)."""
    rows = attacks["attacks"].get("relearning", {}).get("rows", [])
    if not rows:
        return None
    most = max(row["setting"]["images"] for row in rows)
    by: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["setting"]["images"] == most:
            of_steps = by.setdefault(row["subject"], {}).setdefault(row["steps"], [])
            of_steps.append(advantage(row))
    return most, {
        who: {k: float(np.mean(v)) for k, v in sorted(curve.items())} for who, curve in by.items()
    }


def concept(config: RunConfig, metrics: dict[str, Any]) -> str:
    """What was forgotten: the concept, the names, the requests, or the classes of the images."""
    samples = config.samples
    if samples.forget_text:
        return ", ".join(samples.forget_text)
    if ledger := metrics.get("ledger"):
        return listed([one["concept"] for one in ledger["requests"]], CLASSES)
    # Runs of earlier versions do not have the classes.
    classes = listed(metrics["samples"].get("forget_classes", ()), CLASSES)
    folder = samples.forget.name if samples.forget else ""
    return samples.concept or classes or folder


@cache
def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jax_unlearn", "runs/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


Said = Mapping[str, tuple[str, str]]


def said_about(metrics: Mapping[str, Any], answers: str | None) -> Said:
    """(answer before, answer after) to the naming question, by the image's name."""
    named = worst_named(metrics)
    if answers is None or named is None:
        return {}
    rows = map(json.loads, answers.splitlines())
    return {
        row["image"]: (row["before"]["matched"], row["after"]["matched"])
        for row in rows
        if row["question"] == named[1]["question"]
    }


def pictures(
    samples: Sequence[Sequence[ImageFile]], metrics: Mapping[str, Any], said: Said
) -> list[tuple[str, list[Picture]]]:
    """Rows of images with a title: of the concept, of the nearest classes, and others."""
    if not any(samples):
        return []
    forget, preserve = samples
    near = set(metrics.get("neighbours", ()))
    rows = {
        "To forget": forget,
        "The nearest classes to keep": [file for file in preserve if file.label in near],
        "Others to keep": [file for file in preserve if file.label not in near],
    }
    return [(title, thumbnails(evenly_spaced(row), said)) for title, row in rows.items() if row]


def evenly_spaced(files: Sequence[ImageFile]) -> list[ImageFile]:
    """At most THUMBNAILS files, evenly spaced over the list."""
    return list(files[:: max(1, len(files) // THUMBNAILS)])[:THUMBNAILS]


def thumbnails(files: Sequence[ImageFile], said: Said) -> list[Picture]:
    """Small images; a file that changed since and cannot be read is left out."""
    found = []
    for file in files:
        try:
            found.append(Picture(thumbnail(file), file.label, said.get(file.name)))
        except UNREADABLE as error:
            why = reason(error)
            warnings.warn(f"{file.name}: is not shown in the report ({why})", stacklevel=2)
    return found


def thumbnail(file: ImageFile) -> str:
    image = read_image(file.source())
    image.thumbnail((144, 144), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
