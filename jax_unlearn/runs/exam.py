"""The part of `evaluate` that asks the Hugging Face model about the held-out images."""

from pathlib import Path
from typing import Any

from rich.console import Console

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.scan import printable
from jax_unlearn.evaluate.vlm.benchmark_scores import Benchmark, examine_benchmark
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import VLM, load_vlm
from jax_unlearn.evaluate.vlm.questions import UNNAMED, Things
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import images
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.digests import of_text
from jax_unlearn.runtime.outputs import ANSWERS, BENCHMARK_ANSWERS


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


def loaded(run_dir: Path, config: RunConfig, settings: AskSettings, console: Console) -> VLM:
    """The model of a run with its adapter.

    Raises:
        UserError: torch is not installed, or the checkpoint is no vision-language model.
    """
    with console.status("Loading the model"):
        return load_vlm(
            config.samples.checkpoint,
            run_dir / "adapter",
            device=settings.device,
            dtype=settings.dtype,
            max_pixels=config.extraction.max_pixels,
        )


def examine(
    exam: Exam, vlm: VLM, settings: AskSettings, console: Console
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask the model about the held-out images, before and after.

    Returns:
        The entries of metrics.json, and the text of answers.jsonl by its name.
    """
    found = exam.before_and_after(vlm, console, settings.max_new_tokens, settings.batch_tokens)
    lines = found.lines()
    entry = {
        **found.scores,
        "questions": None if exam.file is None else str(exam.file.resolve()),
        "unnamed": exam.unnamed,
        "asked_with": settings.used(vlm),
        ANSWERS: of_text(lines),
    }
    return {"vlm": entry}, {ANSWERS: lines}


def examine_published(
    benchmark: Benchmark, vlm: VLM, settings: AskSettings, console: Console
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask the questions of a benchmark, before and after; says what of it is not used.

    Returns:
        The entries of metrics.json, and the text of benchmark-answers.jsonl by its name.
    """
    name, count = benchmark.name, len(benchmark.items)
    console.out(f"{benchmark.path}: the layout of {name}; questions about images: {count}")
    for what, number in benchmark.unused.items():
        console.out(printable(f"{name}: not used: {number} {what}"))
    entry, lines = examine_benchmark(benchmark, vlm, settings, console)
    if any(entry["unfinished"].values()):
        before, after = (entry["unfinished"][when] for when in ("before", "after"))
        console.out(
            f"warning: {name}: the reasoning of {before} replies before the edit and {after} after "
            "had no end, which count as wrong; give a larger --max-new-tokens"
        )
    return (
        {"benchmark": entry | {BENCHMARK_ANSWERS: of_text(lines)}},
        {BENCHMARK_ANSWERS: lines},
    )
