"""Separate the reasoning of a model from its answer.

Models that reason write `<think>reasoning</think>answer`. The chat template of some of them ends
with `<think>`, so that their reply has only the end mark; `model.ask` puts the first mark back.
"""

OPEN, CLOSE = "<think>", "</think>"


def answer_of(reply: str) -> str:
    """The part of a reply after its reasoning; "" if the reasoning was not finished."""
    _, closed, answer = reply.rpartition(CLOSE)
    if closed:
        return answer.strip()
    return "" if OPEN in reply else reply.strip()


def is_unfinished(reply: str) -> bool:
    """Whether a reply has reasoning and no answer after it."""
    return (OPEN in reply or CLOSE in reply) and not answer_of(reply)


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends within reasoning, which the reply then continues."""
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)
