"""Questions about images and their right answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_unlearn.data.class_names import spaced
from jax_unlearn.evaluate.vlm.matching import YES_NO, normal
from jax_unlearn.objective.counterparts import words_of
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json

DEFAULT_QUESTION = "what is this?"
# Classes of images that are in no sub-folder.
UNNAMED = frozenset({"forget", "preserve"})
# What is asked for by "is there a …?", each with the classes whose images are not asked about.
Things = Mapping[str, Collection[str]]
NOTHING: Things = {}


@dataclass(frozen=True)
class Question:
    """A question, and its right answer for each class it can be asked about.

    Attributes:
        text: the question, by which it is named in metrics.json.
        answers: the right answer for each class.
        paraphrases: other wordings; each image is asked one of them or the text.
        synonyms: by each other form that is accepted, in normal form, the answer that it stands
            for, in normal form.
    """

    text: str
    answers: dict[str, str]
    paraphrases: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return not {normal(answer) for answer in self.answers.values()} <= YES_NO

    def wording(self, number: int) -> str:
        """The wording for the image with this number among those of its class."""
        every = (self.text, *self.paraphrases)
        return every[number % len(every)]


def load_questions(
    path: Path | None, labels: Sequence[str], things: Things = NOTHING
) -> list[Question]:
    """Load questions from a JSON list of {question, answers: {class: answer}}.

    A question may be a list of wordings, and an answer a list of accepted forms.

    Args:
        path: the file; by default the questions are `default_questions`.
        labels: classes of the images.
        things: what the default questions ask for, each with classes that are not asked.

    Raises:
        UserError: the file is not such a list, two answers to a question accept the same form, or
            it asks about none of the classes.
    """
    if path is None:
        return default_questions(labels, things)
    try:
        entries = read_json(path)
        questions = [_question(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of {{question, answers}} ({error})") from error
    known = [q for q in questions if set(q.answers) & set(labels)]
    if not known:
        raise UserError(f"{path}: no question has an answer for a class among {sorted(labels)}")
    return known


def default_questions(labels: Sequence[str], things: Things = NOTHING) -> list[Question]:
    """What is this? And is there a …? for each thing; the right answers follow from the classes.

    A class with more words, such as "red triangle", shows the thing "triangle". A class with fewer
    words than the thing may show it or not, and is not asked.

    Args:
        labels: classes of the images.
        things: what is asked for, each with classes that are not asked.
    """
    found = [Question(DEFAULT_QUESTION, {label: label for label in labels})]
    for thing, left_out in things.items():
        answers = {
            label: "yes" if words_of(thing) <= words_of(label) else "no"
            for label in labels
            if label not in UNNAMED.union(left_out) and not words_of(label) < words_of(thing)
        }
        if "yes" in answers.values():
            article = "an" if thing[:1].lower() in "aeiou" else "a"
            found.append(Question(f"is there {article} {spaced(thing)}?", answers))
    return found


def _question(entry: Mapping[str, Any]) -> Question:
    """One entry of a file.

    Raises:
        KeyError, TypeError, ValueError: it has another form.
    """
    wordings, answers = _texts(entry["question"]), {}
    synonyms: dict[str, str] = {}
    for label, forms in dict(entry["answers"]).items():
        answers[label], *others = _texts(forms)
        for form in (answers[label], *others):
            answer = synonyms.setdefault(normal(form), normal(answers[label]))
            if answer != normal(answers[label]):
                raise ValueError(
                    f"{wordings[0]!r}: {form!r} is accepted for {answers[label]!r} and {answer!r}"
                )
    others_only = {form: answer for form, answer in synonyms.items() if form != answer}
    return Question(wordings[0], answers, tuple(wordings[1:]), others_only)


def _texts(value: Any) -> list[str]:
    """A text or a list of texts, as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise TypeError(f"{str(value)[:60]!r} is neither a text nor a list of texts")
    if not texts:
        raise ValueError("an empty list of texts")
    return texts
