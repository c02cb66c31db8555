"""Ask the whole model about held-out images, without and with the adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.evaluate.vlm.model import VLM, ask, load_vlm
from jax_unlearn.evaluate.vlm.questions import load_questions
from jax_unlearn.evaluate.vlm.scoring import ask_all, score


class Exam:
    """Held-out images, questions about them, and the groups to score.

    Args:
        files: the images.
        is_forget: which of them are forget images.
        neighbours: preserve classes to score separately.
        questions: JSON file of questions; by default the model is asked what it sees.

    Raises:
        UserError: the file has another format, or asks about none of the classes.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        is_forget: Bool[np.ndarray, " n"],
        neighbours: Sequence[str],
        questions: Path | None,
    ) -> None:
        self.labels = np.array([file.label for file in files])
        self.questions = load_questions(questions, self.labels.tolist())
        self.images = [read_image(file.source()) for file in files]
        self.is_forget = is_forget
        self.neighbours = neighbours

    def score_model(self, vlm: VLM) -> dict[str, Any]:
        """Scores of one model (`scoring.score`)."""

        def ask_about(rows: list[int], question: str) -> list[str]:
            return ask(vlm, [self.images[i] for i in rows], question)

        answers = ask_all(ask_about, self.questions, self.labels)
        return score(answers, self.labels, self.is_forget, self.neighbours)

    def before_and_after(self, checkpoint: Path, adapter: Path) -> dict[str, Any]:
        """Scores without and with the adapter; only one model is in memory at a time."""
        before = self.score_model(load_vlm(checkpoint))
        return {"before": before, "after": self.score_model(load_vlm(checkpoint, adapter))}
