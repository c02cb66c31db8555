"""The part of `evaluate` that asks the Hugging Face model about the held-out images."""

from pathlib import Path
from typing import Any

from rich.console import Console

from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.evaluate.vlm.questions import UNNAMED, Things
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import images
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.digests import of_text
from jax_unlearn.runtime.outputs import ANSWERS


def things_to_ask(extracted: Extracted) -> Things:
    """The concepts, and the classes that they are compared with or moved onto.

    Images of one concept are not asked about another.
    """
    pairs = extracted.counterparts
    forgotten = {label for pair in pairs for label in pair.forget}
    things: dict[str, set[str]] = {pair.concept: forgotten - {*pair.forget} for pair in pairs}
    for pair in pairs:
        if pair.preserve:
            things.setdefault(pair.name, set())
    return {thing: left_out for thing, left_out in things.items() if thing not in UNNAMED}


def exam_of(extracted: Extracted, neighbours: list[str], questions: Path | None) -> Exam:
    """The exam about the held-out images of a run.

    Raises:
        UserError: the questions have another format, or are about none of the classes.
    """
    test = extracted.test
    files: tuple[ImageFile, ...] = (*images(test.forget), *images(test.preserve))
    return Exam(files, test.is_forget, neighbours, questions, things_to_ask(extracted))


def examine(
    run_dir: Path, config: RunConfig, exam: Exam, settings: AskSettings, console: Console
) -> tuple[dict[str, Any], str]:
    """Ask the model, before and after.

    Args:
        run_dir: directory of the run, with its adapter.
        config: settings of the run.
        exam: the images and questions.
        settings: how the model is asked.
        console: where progress is shown.

    Returns:
        The entry `vlm` of metrics.json, and the content of answers.jsonl.

    Raises:
        UserError: torch is not installed, or the checkpoint is no vision-language model.
    """
    with console.status("Loading the model"):
        vlm = load_vlm(
            config.samples.checkpoint,
            run_dir / "adapter",
            device=settings.device,
            dtype=settings.dtype,
            max_pixels=config.extraction.max_pixels,
        )
    found = exam.before_and_after(vlm, console, settings.max_new_tokens, settings.batch_tokens)
    lines = found.lines()
    return {
        **found.scores,
        "unnamed": exam.unnamed,
        "asked_with": settings.used(vlm),
        ANSWERS: of_text(lines),
    }, lines
