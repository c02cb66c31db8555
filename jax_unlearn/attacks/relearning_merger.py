"""Attack: fine-tune the edited Linears on a few labelled images of the concept.

Expected to succeed, as it changes what the edit changed: it shows the limit of what an edit of open
weights can promise. Otherwise as the attack `relearning`.
"""

from collections.abc import Iterator

from jax_unlearn.attacks import relearning
from jax_unlearn.attacks.edited_model import EditedModel
from jax_unlearn.attacks.registry import Attack, Trial
from jax_unlearn.attacks.target import AttackedRun


def edited_linears(model: EditedModel) -> list[str]:
    return [*dict.fromkeys(name.rpartition(".")[0] for name in model.original)]


def trials(run: AttackedRun) -> Iterator[Trial]:
    yield from relearning.trials(run, edited_linears)


ATTACK = Attack(
    "relearning_merger",
    "Fine-tunes the edited Linears (LoRA of rank 8, the language model frozen) on the same images.",
    relearning.ATTACK.budget,
    relearning.CONTROLS,
    True,
    trials,
    relearning.left_out,
)
