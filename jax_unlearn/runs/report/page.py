"""report.html: one file with everything that a run measured, its curves and its images."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.runs.settings.config import RunConfig, to_json

THUMBNAILS = 10
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
    """The page of a run, whose directory holds history.jsonl already.

    Args:
        samples: rows of readable images to show the first of, to forget and to preserve.
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
            title=f"Forgetting “{concept(config)}”",
            zero_shot=metrics.get("zero_shot"),
            zero_shot_rows=ZERO_SHOT_ROWS,
            m=metrics,
            vlm=vlm,
            **pairs,
            vlm_rows=VLM_ROWS,
            plot=plot_history(directory / "history.jsonl"),
            thumbs=[[thumbnail(file) for file in spread(row)] for row in samples],
            settings=to_json(config),
            pct=percent,
        )
    )
    return page


def concept(config: RunConfig) -> str:
    if config.forget_text:
        return ", ".join(config.forget_text)
    return config.concept or (config.forget.name if config.forget else "")


def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jax_unlearn", "runs/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def spread(files: Sequence[ImageFile]) -> list[ImageFile]:
    """A few files, evenly over the list, so that every part of it is seen."""
    return list(files[:: max(1, len(files) // THUMBNAILS)])[:THUMBNAILS]


def thumbnail(file: ImageFile) -> str:
    image = read_image(file.source())
    image.thumbnail((144, 144), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def plot_history(path: Path) -> str:
    """The terms by epoch, as a PNG in base64."""
    history = [json.loads(line) for line in path.read_text().splitlines()]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for term in ("total", "forget", "preserve", "weight"):
        axes.plot([row[term] for row in history], label=term, lw=2 if term == "total" else 1.2)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
