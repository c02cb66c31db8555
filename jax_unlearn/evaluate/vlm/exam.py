"""Ask the whole model about held-out images, without and with the adapter."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from rich.console import Console

from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.evaluate.vlm.asking import BATCH_TOKENS, ask
from jax_unlearn.evaluate.vlm.model import VLM
from jax_unlearn.evaluate.vlm.questions import NOTHING, UNNAMED, Things, load_questions
from jax_unlearn.evaluate.vlm.scoring import Asked, ask_all, score
from jax_unlearn.runtime.progress import progress_bar

# Pixels of the images that are kept in memory; the others are read again for each question.
MOST_PIXELS = 10**8


@dataclass(frozen=True)
class Examined:
    """Scores without and with the adapter, and a row for each answer."""

    scores: dict[str, Any]
    answers: list[dict[str, Any]]

    def lines(self) -> str:
        """The answers as JSON lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.answers)


class Exam:
    """Held-out images, questions about them, and the groups to score.

    Args:
        files: the images.
        is_forget: which of them are forget images.
        neighbours: preserve classes to score separately.
        questions: JSON file of questions; by default the model is asked what it sees, and whether
            it sees the `things`.
        things: the concepts, and the classes that they are moved onto.

    Raises:
        UserError: the file has another format, or asks about none of the classes.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        is_forget: Bool[np.ndarray, " n"],
        neighbours: Sequence[str],
        questions: Path | None,
        things: Things = NOTHING,
    ) -> None:
        self.files, self.file = files, questions
        self.labels = np.array([file.label for file in files])
        self.questions = load_questions(questions, self.labels.tolist(), things)
        # Without a name no right answer to the default questions is known.
        self.unnamed = sorted(UNNAMED & set(self.labels.tolist())) if questions is None else []
        self.images = in_memory(files)
        self.is_forget = is_forget
        self.neighbours = neighbours

    def ask(
        self,
        vlm: VLM,
        max_new_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        advance: Any = None,
    ) -> list[Asked]:
        """The answers of one model; see `model.ask`."""
        most = vlm.new_tokens if max_new_tokens is None else max_new_tokens

        def ask_about(rows: list[int], question: str) -> list[str]:
            images = [self.images[i] for i in rows]
            return ask(
                vlm,
                images,
                question,
                max_new_tokens=most,
                batch_tokens=batch_tokens,
                advance=advance,
            )

        return ask_all(ask_about, self.questions, self.labels)

    def score_model(self, vlm: VLM) -> dict[str, Any]:
        """Scores of one model (`scoring.score`)."""
        return self.score(self.ask(vlm))

    def score(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """Scores of answers; none of naming where the images of a side have no class."""
        found = score(asked, self.labels, self.is_forget, self.neighbours)
        if self.unnamed:
            found |= {"named": [], "others": None, "neighbours": None}
        return found

    def before_and_after(
        self,
        vlm: VLM,
        console: Console,
        max_new_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Examined:
        """Ask a model that has an adapter, with the adapter switched off and on.

        Args:
            vlm: the model.
            console: where progress is shown.
            max_new_tokens: most tokens of an answer; by default as the model needs.
            batch_tokens: most tokens of a batch.
        """
        found: list[list[Asked]] = []
        total = 2 * sum(int(np.isin(self.labels, list(q.answers)).sum()) for q in self.questions)
        with progress_bar(console) as bar:
            task = bar.add_task("Asking the model, before and after", total=total)
            for adapted in (False, True):
                with vlm.with_adapter(adapted):
                    found.append(
                        self.ask(vlm, max_new_tokens, batch_tokens, lambda n: bar.advance(task, n))
                    )
        before, after = found
        scores = {"before": self.score(before), "after": self.score(after)}
        return Examined(scores, list(self.rows(before, after)))

    def rows(self, before: Sequence[Asked], after: Sequence[Asked]) -> Iterator[dict[str, Any]]:
        """A row of answers.jsonl for each image and question."""
        for one, other in zip(before, after, strict=True):
            for i, image in enumerate(one.images):
                label = str(self.labels[image])
                yield {
                    "image": self.files[image].name,
                    "class": label,
                    "side": "forget" if self.is_forget[image] else "preserve",
                    "question": one.wordings[i],
                    "right": one.question.answers[label],
                    "before": {"reply": one.replies[i], "matched": str(one.said[i])},
                    "after": {"reply": other.replies[i], "matched": str(other.said[i])},
                }


def in_memory(files: Sequence[ImageFile]) -> list[Image.Image | ImageFile]:
    """The first images decoded, as long as they have few pixels; the others as files."""
    found: list[Image.Image | ImageFile] = []
    pixels = 0
    for file in files:
        if pixels > MOST_PIXELS:
            found.append(file)
            continue
        image = read_image(file.source())
        pixels += image.width * image.height
        found.append(image)
    return found
