"""The whole model's answers about held-out images, scored by what was to be forgotten.

A question names the concept if an answer that is right for a forgotten class is right for no
preserved one ("what is this?" → astronaut). Where no open question does that alone, two together
may ("what shape?" and "what color?" name a red triangle among triangles and red shapes).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_unlearn.evaluate.vlm.questions import Question

Ask = Callable[[list[int], str], list[str]]
# How many of the other answers are reported.
MOST_FREQUENT = 3


@dataclass(frozen=True)
class Asked:
    """A question, the images that it was asked about, and what the model said."""

    question: Question
    images: np.ndarray
    said: np.ndarray


def ask_all(ask: Ask, questions: Sequence[Question], labels: np.ndarray) -> list[Asked]:
    """Put every question to the images that it has an answer for."""
    asked = []
    for question in questions:
        images = np.flatnonzero(np.isin(labels, list(question.answers)))
        possible = set(question.answers.values())
        replies = ask(images.tolist(), question.text)
        said = np.array([match_answer(reply, possible) for reply in replies], dtype=object)
        asked.append(Asked(question, images, said))
    return asked


def normal(answer: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", answer.lower()))


def match_answer(reply: str, possible: Collection[str]) -> str:
    """The possible answer that a sentence gives: the longest that stands in it as whole words.

    "The image shows a red circle." is "red circle". A sentence with two of them that do not contain
    each other, or with none, stays as it is, and is none of them.
    """
    text = normal(reply)
    held = {a for a in map(normal, possible) if f" {a} " in f" {text} "}
    whole = [a for a in held if not any(a != b and f" {a} " in f" {b} " for b in held)]
    return whole[0] if len(whole) == 1 else text


@dataclass(frozen=True)
class Naming:
    """Questions that together name the concept, by the tuples of answers that do so."""

    questions: tuple[Question, ...]
    tuples: frozenset[tuple[str, ...]]
    chance: float

    @property
    def text(self) -> str:
        return " + ".join(q.text for q in self.questions)


def naming(questions: Sequence[Question], forget: set[str], preserve: set[str]) -> list[Naming]:
    """The questions, or else pairs of open questions, whose answers tell the concept apart."""
    alone = [n for q in questions if (n := _naming((q,), forget, preserve))]
    single = {n.questions[0].text for n in alone}
    rest = [q for q in questions if q.is_open and q.text not in single]
    pairs = [n for pair in combinations(rest, 2) if (n := _naming(pair, forget, preserve))]
    return alone + pairs


def _naming(qs: tuple[Question, ...], forget: set[str], preserve: set[str]) -> Naming | None:
    def right(classes: set[str]) -> set[tuple[str, ...]]:
        asked = [c for c in classes if all(c in q.answers for q in qs)]
        return {tuple(normal(q.answers[c]) for q in qs) for c in asked}

    # The answers must separate every forgotten class that is asked from the kept ones.
    kept = right(preserve)
    if not right(forget) or right(forget) & kept:
        return None
    # "Yes" or "no" to a question that no kept image is asked tells nothing from anything.
    if not kept and not all(q.is_open for q in qs):
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

    Returns:
        named: for each naming open question, the share of forget images whose concept the answer
            names, what a guess would score, and `instead`: the most frequent other answers with
            their shares of the forget images.
        confirmed: the same for the yes/no questions that tell the concept from the rest.
        false_yes: for each other yes/no question, the share of the forget images for which "no" is
            right and the answer is "yes".
        selectivity: accuracy on forget images of the open questions that have no part in naming,
            and `selectivity_of` each of them.
        others, neighbours: accuracy of the naming open questions on preserve images, and on the
            neighbour classes among them. others_rest: of the other open questions. yes_no: of
            yes/no questions on preserve images.
        An accuracy is None where nothing was asked.
    """
    by_text = {a.question.text: a for a in asked}
    forget, preserve = set(labels[is_forget]), set(labels[~is_forget])
    names = naming([a.question for a in asked], forget, preserve)
    used = {q.text for n in names for q in n.questions}
    near = ~is_forget & np.isin(labels, list(neighbours))
    opened = [a for a in asked if a.question.is_open]
    naming_open = [a for a in opened if a.question.text in used]
    rest = [a for a in opened if a.question.text not in used]
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
    }


def _false_yes(asked: Asked, labels: np.ndarray, rows: Bool[np.ndarray, " n"]) -> float | None:
    """Of the images of `rows` for which "no" is right, the share that is answered "yes"."""
    right = np.array([normal(asked.question.answers[label]) for label in labels[asked.images]])
    said = asked.said[rows[asked.images] & (right == "no")]
    return float((said == "yes").mean()) if len(said) else None


def _accuracy(
    asked: Sequence[Asked], labels: np.ndarray, rows: Bool[np.ndarray, " n"]
) -> float | None:
    """Share of right answers about the images of `rows`; None where nothing was asked."""
    hits = []
    for a in asked:
        keep = rows[a.images]
        right = [normal(a.question.answers[label]) for label in labels[a.images[keep]]]
        hits.append(a.said[keep] == np.array(right, dtype=object))
    joined = np.concatenate(hits) if hits else np.array([])
    return float(joined.mean()) if len(joined) else None
