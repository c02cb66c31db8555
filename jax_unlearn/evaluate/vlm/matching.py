"""Match a model's reply with the possible answers to a question."""

import re
from collections.abc import Collection, Mapping

from jax_unlearn.evaluate.vlm.reasoning import answer_of

YES_NO = {"yes", "no"}
# Characters of Chinese and Japanese, which are written without spaces, count as words.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def normal(answer: str) -> str:
    """An answer in lower case, its words separated by single spaces, without punctuation."""
    return " ".join(WORD.findall(answer.lower()))


def match_answer(
    reply: str, possible: Collection[str], synonyms: Mapping[str, str] | None = None
) -> str:
    """The possible answer that a reply contains as whole words, the longest if they are nested.

    "The image shows a red circle." gives "red circle". Of an answer yes or no the first word
    decides, if it is one of them. Reasoning before the answer is not read. A reply with none, or
    with two that do not contain each other, is returned in normal form and matches no answer.

    Args:
        reply: what the model said.
        possible: the possible answers.
        synonyms: the possible answer, in normal form, by each other form that is accepted for it.
    """
    text = normal(answer_of(reply))
    forms = {form: form for form in map(normal, possible)} | dict(synonyms or {})
    first = text.partition(" ")[0]
    if first in forms and set(forms.values()) <= YES_NO:
        return forms[first]
    held = {form for form in forms if f" {form} " in f" {text} "}
    whole = [a for a in held if not any(a != b and f" {a} " in f" {b} " for b in held)]
    answers = {forms[form] for form in whole}
    return answers.pop() if len(answers) == 1 else text
