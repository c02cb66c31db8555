"""Conversations about images as text, by the checkpoint's chat template."""

from collections.abc import Sequence
from typing import Any

# A question about an image, and its answer or None.
Turn = tuple[str, str | None]


def conversation(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The text of a conversation up to the next answer, with a place for the image of each turn.

    Args:
        tokenizer: has the chat template.
        turns: the questions with their answers; the last answer is None.
    """
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        if answer is not None:
            said = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": said})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return str(text)
