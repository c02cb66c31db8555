"""report.html: a self-contained page with a run's metrics, loss curves and images."""

import base64
import io
import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from jax_unlearn.data.images import UNREADABLE, ImageFile, read_image, reason
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runtime.text_files import encodable

THUMBNAILS = 10
# Names of forgotten classes in a title.
CLASSES = 5
VLM_ROWS = (
    ("selectivity", "what else the forget images show, right"),
    ("others", "naming questions on preserve images, right"),
    ("neighbours", "naming questions on the nearest classes, right"),
    ("others_rest", "other open questions on preserve images, right"),
    ("yes_no", "yes/no questions on preserve images, right"),
)
ZERO_SHOT_ROWS = (("others", "all other classes"), ("neighbours", "the nearest of them"))


def report(
    directory: Path,
    config: RunConfig,
    metrics: dict[str, Any],
    samples: Sequence[Sequence[ImageFile]],
) -> str:
    """Render the page of a run.

    Args:
        directory: the run's directory, with history.jsonl.
        config: the settings.
        metrics: the content of metrics.json.
        samples: rows of readable images, forget and preserve, of which a few are shown.
    """
    vlm = metrics.get("vlm")
    pairs = {
        k: list(zip(vlm["before"][k], vlm["after"][k], strict=True)) if vlm else []
        for k in ("named", "confirmed")
    }
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=f"Forgetting “{concept(config, metrics)}”",
            zero_shot=metrics.get("zero_shot"),
            zero_shot_rows=ZERO_SHOT_ROWS,
            m=metrics,
            vlm=vlm,
            **pairs,
            vlm_rows=VLM_ROWS,
            plot=plot_history(directory / "history.jsonl"),
            few_shot_plots=[
                plot_few_shot(one["few_shot"]["mean"]) if one["few_shot"] else ""
                for one in metrics.get("reidentification", ())
            ],
            thumbs=[thumbnails(evenly_spaced(row)) for row in samples],
            settings=to_json(config),
            pct=percent,
        )
    )
    return encodable(page)


def concept(config: RunConfig, metrics: dict[str, Any]) -> str:
    """What was forgotten: the concept, the names, or the classes of the images."""
    samples = config.samples
    if samples.forget_text:
        return ", ".join(samples.forget_text)
    # Runs of earlier versions do not have the classes.
    classes = metrics["samples"].get("forget_classes", ())
    more = f" and {len(classes) - CLASSES} more" if len(classes) > CLASSES else ""
    folder = samples.forget.name if samples.forget else ""
    return samples.concept or f"{', '.join(classes[:CLASSES])}{more}" or folder


@cache
def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jax_unlearn", "runs/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def evenly_spaced(files: Sequence[ImageFile]) -> list[ImageFile]:
    """At most THUMBNAILS files, evenly spaced over the list."""
    return list(files[:: max(1, len(files) // THUMBNAILS)])[:THUMBNAILS]


def thumbnails(files: Sequence[ImageFile]) -> list[str]:
    """Small images as PNG in base64; a file that changed since and cannot be read is left out."""
    found = []
    for file in files:
        try:
            found.append(thumbnail(file))
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


def plot_history(path: Path) -> str:
    """Plot the terms by epoch; returns a PNG in base64."""
    # Here, since a run that is refused plots nothing.
    from matplotlib.figure import Figure

    history = [json.loads(line) for line in path.read_text().splitlines()]
    figure = Figure(figsize=(8, 3.2), layout="tight")
    axes = figure.subplots()
    for term in ("total", "forget", "preserve", "weight"):
        axes.plot([row[term] for row in history], label=term, lw=2 if term == "total" else 1.2)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return png(figure)


def plot_few_shot(curve: dict[str, Any]) -> str:
    """Plot the accuracy by number of labelled images, with its range; returns a PNG in base64."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="tight")
    axes = figure.subplots()
    shots = [int(k) for k in curve]
    for when in ("before", "after"):
        mean, least, most = zip(*(curve[str(k)][when] for k in shots), strict=True)
        axes.plot(shots, mean, marker="o", label=when)
        axes.fill_between(shots, least, most, alpha=0.2)
    axes.axhline(0.5, color="gray", lw=1, ls=":")
    axes.set(xscale="log", xlabel="labelled images of each", ylabel="balanced accuracy")
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return png(figure)


def png(figure: Any) -> str:
    """A matplotlib figure as PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
