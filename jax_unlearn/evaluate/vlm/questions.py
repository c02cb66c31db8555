"""Questions about images and their right answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json

YES_NO = {"yes", "no"}
DEFAULT_QUESTION = "what is this?"


@dataclass(frozen=True)
class Question:
    """A question, and its right answer for each class it can be asked about."""

    text: str
    answers: dict[str, str]

    @property
    def is_open(self) -> bool:
        return not set(self.answers.values()) <= YES_NO


def load_questions(path: Path | None, labels: Sequence[str]) -> list[Question]:
    """Load questions from a JSON list of {question, answers: {class: answer}}.

    Args:
        path: the file; by default one question whose answers are the class names.
        labels: classes of the images.

    Raises:
        UserError: the file is not such a list, or asks about none of the classes.
    """
    if path is None:
        return [Question(DEFAULT_QUESTION, {label: label for label in labels})]
    try:
        entries = read_json(path)
        questions = [Question(e["question"], dict(e["answers"])) for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of {{question, answers}} ({error})") from error
    known = [q for q in questions if set(q.answers) & set(labels)]
    if not known:
        raise UserError(f"{path}: no question has an answer for a class among {sorted(labels)}")
    return known
