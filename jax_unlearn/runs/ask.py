"""The command ask: what the model answers about any image, before and after the edit."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import porting
from jax_unlearn.data.scan import printable
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import need_torch
from jax_unlearn.evaluate.vlm.questions import DEFAULT_QUESTION
from jax_unlearn.evaluate.vlm.reasoning import answer_of, is_unfinished
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.runs.exam import loaded
from jax_unlearn.runs.run_directory import check_run
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runs.terminal import print_table
from jax_unlearn.runs.vision_outputs import read_images
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.progress import progress_bar


@dataclass(frozen=True)
class Ask:
    """Ask the Hugging Face model about any images, before and after the edit (needs torch)."""

    run: Positional[Path]
    """Directory of a run."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    question: tuple[str, ...] = (DEFAULT_QUESTION,)
    """What to ask about each image."""
    json: bool = False
    """Print JSON, with whole replies."""
    checkpoint: Path | None = None
    """Where the run's checkpoint is now, if it was moved."""
    asking: AskSettings = field(default_factory=AskSettings)


@dataclass(frozen=True)
class Reply:
    """The model's whole replies to a question about an image."""

    image: str
    question: str
    before: str
    after: str


def ask_run(command: Ask, console: Console) -> list[Reply]:
    """Ask the questions about the images, one model in memory.

    Raises:
        UserError: no image is given or one cannot be read, torch is not installed, or the run is
            of CLIP or has changed.
    """
    command.asking.check()
    if not command.images:
        raise UserError("ask: no image is given; name at least one image file after the run")
    if not all(question.strip() for question in command.question) or not command.question:
        raise UserError("--question: is empty; give a question, in quotes, or leave it out")
    config = read_config(command.run)
    if command.checkpoint is not None:
        config = config.replace(checkpoint=command.checkpoint)
    if porting.is_clip(config.samples.checkpoint):
        raise UserError(
            f"{command.run}: is a run of CLIP, which answers no questions; `jax-unlearn evaluate` "
            "has its zero-shot accuracy"
        )
    need_torch()
    images = read_images(command.images)
    check_run(command.run, config)
    vlm = loaded(command.run, config, command.asking, console)
    for path, image in zip(command.images, images, strict=True):
        try:
            vlm.preprocessor.patches(image.size)
        except ValueError as error:
            raise UserError(f"{path}: {error}; leave it out") from error
    found: dict[bool, list[str]] = {}
    asked = [(path, question) for question in command.question for path in command.images]
    with progress_bar(console) as bar:
        task = bar.add_task("Asking the model, before and after", total=2 * len(asked))
        for adapted in (False, True):
            replies = []
            with vlm.with_adapter(adapted):
                for question in command.question:
                    replies += ask(
                        vlm,
                        images,
                        question,
                        max_new_tokens=command.asking.new_tokens(vlm),
                        batch_tokens=command.asking.batch_tokens,
                        advance=lambda count: bar.advance(task, count),
                    )
            found[adapted] = replies
    return [
        Reply(str(path), question, before, after)
        for (path, question), before, after in zip(asked, found[False], found[True], strict=True)
    ]


def show_replies(replies: list[Reply], as_json: bool) -> None:
    """Print the replies, and a warning if some reasoning has no end."""
    if warning := unfinished(replies):
        print(warning, file=sys.stderr)
    if as_json:
        rows = [asdict(reply) for reply in replies]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_table(as_table(replies))


def as_table(replies: list[Reply]) -> Table:
    """The answers without their reasoning."""
    table = Table()
    for column in ("image", "question", "before", "after"):
        # Paths are long, and their ends tell the images apart.
        table.add_column(column, overflow="fold")
    for one in replies:
        cells = (one.image, one.question, shown(one.before), shown(one.after))
        table.add_row(*map(printable, cells))
    return table


def shown(reply: str) -> str:
    return "(its reasoning has no end)" if is_unfinished(reply) else answer_of(reply)


def unfinished(replies: list[Reply]) -> str | None:
    """A warning if some reasoning has no end."""
    count = sum(is_unfinished(text) for one in replies for text in (one.before, one.after))
    if not count:
        return None
    return (
        f"warning: the reasoning of {count} of {2 * len(replies)} replies has no end; give a "
        "larger --max-new-tokens"
    )
