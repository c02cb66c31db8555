"""Score the whole model's answers about held-out images.

A question is a naming question if no answer that is right for a forgotten class is right for a
preserved one ("what is this?" → astronaut). If no open question is one by itself, a pair may be
("what shape?" and "what color?" name a red triangle among triangles and red shapes).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_unlearn.evaluate.vlm.matching import match_answer, normal
from jax_unlearn.evaluate.vlm.questions import Question
from jax_unlearn.evaluate.vlm.reasoning import is_unfinished

Ask = Callable[[list[int], str], list[str]]
# Number of other answers that are reported.
MOST_FREQUENT = 3


@dataclass(frozen=True)
class Asked:
    """A question, the images it was asked about, and the model's answers.

    Attributes:
        question: the question.
        images: indices of the images.
        said: for each image the possible answer that the reply was matched with, or the reply.
        replies: the model's replies.
        wordings: the wording that was asked.
    """

    question: Question
    images: np.ndarray
    said: np.ndarray
    replies: tuple[str, ...]
    wordings: tuple[str, ...]


def ask_all(ask: Ask, questions: Sequence[Question], labels: np.ndarray) -> list[Asked]:
    """Ask every question about the images whose class it has an answer for."""
    asked = []
    for question in questions:
        images = np.flatnonzero(np.isin(labels, list(question.answers)))
        wordings = wordings_of(question, labels[images])
        replies = [""] * len(images)
        for wording in dict.fromkeys(wordings):
            own = [i for i, one in enumerate(wordings) if one == wording]
            for i, reply in zip(own, ask(images[own].tolist(), wording), strict=True):
                replies[i] = reply
        possible = set(question.answers.values())
        matched = [match_answer(reply, possible, question.synonyms) for reply in replies]
        said = np.array(matched, dtype=object)
        asked.append(Asked(question, images, said, tuple(replies), wordings))
    return asked


def wordings_of(question: Question, labels: np.ndarray) -> tuple[str, ...]:
    """The wording for each image: those of a class take them in turn."""
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        found.append(question.wording(seen[label]))
        seen[label] += 1
    return tuple(found)


@dataclass(frozen=True)
class Naming:
    """Questions that together name the concept, and the tuples of answers that do so."""

    questions: tuple[Question, ...]
    tuples: frozenset[tuple[str, ...]]
    chance: float

    @property
    def text(self) -> str:
        return " + ".join(q.text for q in self.questions)


def naming(questions: Sequence[Question], forget: set[str], preserve: set[str]) -> list[Naming]:
    """The questions, and pairs of the remaining open questions, that name the concept."""
    singles = [n for q in questions if (n := _naming((q,), forget, preserve))]
    used = {n.questions[0].text for n in singles}
    rest = [q for q in questions if q.is_open and q.text not in used]
    pairs = [n for pair in combinations(rest, 2) if (n := _naming(pair, forget, preserve))]
    return singles + pairs


def _naming(qs: tuple[Question, ...], forget: set[str], preserve: set[str]) -> Naming | None:
    def right(classes: set[str]) -> set[tuple[str, ...]]:
        asked = [c for c in classes if all(c in q.answers for q in qs)]
        return {tuple(normal(q.answers[c]) for q in qs) for c in asked}

    # The answers must separate every forgotten class that is asked about from the preserved ones.
    kept = right(preserve)
    if not right(forget) or right(forget) & kept:
        return None
    # A yes/no question that is asked about no preserved class separates nothing, and one whose
    # right answer is no names something else.
    if not all(q.is_open for q in qs) and (not kept or right(forget) != {("yes",)}):
        return None
    possible = np.prod([len(set(q.answers.values())) for q in qs])
    return Naming(qs, frozenset(right(forget)), len(right(forget)) / float(possible))


def score(
    asked: Sequence[Asked],
    labels: np.ndarray,
    is_forget: Bool[np.ndarray, " n"],
    neighbours: Sequence[str],
) -> dict[str, Any]:
    """Scores of a model's answers about held-out images.

    Args:
        asked: the answers.
        labels: classes of the images.
        is_forget: which images are forget images.
        neighbours: preserve classes to score separately.

    Returns:
        A dictionary with these entries; an accuracy is None if no question was asked.

        * named: for each open naming question, the share of forget images whose concept the answer
          names, the expected share of a guess, and `instead`, the most frequent other answers with
          their shares of the forget images;
        * confirmed: the same for yes/no naming questions;
        * false_yes: for each other yes/no question, the share of answers "yes" among forget images
          for which "no" is right;
        * selectivity: accuracy on forget images of the open questions that are no naming questions;
          selectivity_of: the same by question;
        * others: accuracy of the open naming questions on preserve images; neighbours: on those of
          the neighbour classes; others_rest: accuracy of the other open questions on preserve
          images; yes_no: that of yes/no questions;
        * unfinished: number of replies whose reasoning had no end, of `replies` in all.
    """
    by_text = {a.question.text: a for a in asked}
    forget, preserve = set(labels[is_forget]), set(labels[~is_forget])
    names = naming([a.question for a in asked], forget, preserve)
    used = {q.text for n in names for q in n.questions}
    near = ~is_forget & np.isin(labels, list(neighbours))
    open_ones = [a for a in asked if a.question.is_open]
    naming_open = [a for a in open_ones if a.question.text in used]
    rest = [a for a in open_ones if a.question.text not in used]
    closed = [a for a in asked if not a.question.is_open]

    def named(naming: Naming) -> dict[str, Any]:
        parts = [by_text[q.text] for q in naming.questions]
        said = [*zip(*(a.said[is_forget[a.images]] for a in parts), strict=True)]
        hits = [answer in naming.tuples for answer in said]
        others = Counter(" + ".join(one) for one, hit in zip(said, hits, strict=True) if not hit)
        return {
            "question": naming.text,
            "share": float(np.mean(hits)),
            "chance": naming.chance,
            "instead": {one: n / len(said) for one, n in others.most_common(MOST_FREQUENT)},
        }

    return {
        "named": [named(n) for n in names if n.questions[0].is_open],
        "confirmed": [named(n) for n in names if not n.questions[0].is_open],
        "false_yes": {
            a.question.text: share
            for a in closed
            if a.question.text not in used
            and (share := _false_yes(a, labels, is_forget)) is not None
        },
        "selectivity": _accuracy(rest, labels, is_forget),
        "selectivity_of": {a.question.text: _accuracy([a], labels, is_forget) for a in rest},
        "others": _accuracy(naming_open, labels, ~is_forget),
        "others_rest": _accuracy(rest, labels, ~is_forget),
        "neighbours": _accuracy(naming_open, labels, near),
        "yes_no": _accuracy(closed, labels, ~is_forget),
        "unfinished": sum(is_unfinished(reply) for a in asked for reply in a.replies),
        "replies": sum(len(a.replies) for a in asked),
    }


def _false_yes(asked: Asked, labels: np.ndarray, rows: Bool[np.ndarray, " n"]) -> float | None:
    """Share of answers "yes" among the images of `rows` for which "no" is right."""
    right = np.array([normal(asked.question.answers[label]) for label in labels[asked.images]])
    said = asked.said[rows[asked.images] & (right == "no")]
    return float((said == "yes").mean()) if len(said) else None


def _accuracy(
    asked: Sequence[Asked], labels: np.ndarray, rows: Bool[np.ndarray, " n"]
) -> float | None:
    """Share of right answers about the images of `rows`; None without any."""
    hits = []
    for a in asked:
        keep = rows[a.images]
        right = [normal(a.question.answers[label]) for label in labels[a.images[keep]]]
        hits.append(a.said[keep] == np.array(right, dtype=object))
    all_hits = np.concatenate(hits) if hits else np.array([])
    return float(all_hits.mean()) if len(all_hits) else None
