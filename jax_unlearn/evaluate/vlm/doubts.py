"""Warnings about answers that say less about forgetting than it seems."""

from typing import Any

# With fewer held-out images a share says little.
FEW = 10
# Probability of the outcome that an upper limit allows for.
UNLIKELY = 0.05


def doubts(vlm: dict[str, Any], forget_images: int) -> list[str]:
    """A warning for each reason to doubt the scores of the model's answers.

    Args:
        vlm: the entry of metrics.json.
        forget_images: number of held-out images to forget.
    """
    found = []
    for side in vlm.get("unnamed", ()):
        images = "to forget" if side == "forget" else "to keep"
        found.append(
            f"the images {images} are in no sub-folder, so no right answer about them is known and "
            "the model's answers (answers.jsonl) were not scored; put them into sub-folders named "
            f"after what they show, or give --questions with answers for the class “{side}”"
        )
    unfinished = {when: vlm[when].get("unfinished", 0) for when in ("before", "after")}
    if any(unfinished.values()):
        counts = " and ".join(
            f"{count} of {vlm[when]['replies']} replies {when} the edit"
            for when, count in unfinished.items()
        )
        found.append(
            f"the model's reasoning had not ended after {vlm['asked_with']['max_new_tokens']} "
            f"tokens in {counts}, which count as wrong; give a larger --max-new-tokens"
        )
    if 0 < forget_images < FEW:
        limit = 1 - UNLIKELY ** (1 / forget_images)
        found.append(
            f"only {forget_images} held-out images to forget: a model that names {limit:.0%} of "
            f"such images names none of {forget_images} with a probability of {UNLIKELY:.0%}; hold "
            "out more images (--forget-held-out)"
        )
    return found
