"""Attack: what users do to a model anyway: fine-tune it on other data, average it, prune it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.fine_tuning import encode, linears_in, lora, mixed_batches, train
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.relearning import LEARNING_RATE, examples, kept
from jax_unlearn.attacks.target import AttackedRun

CONTROLS = {BEFORE: "the model before the edit, treated in the same way"}
# Share of the original weights that is mixed in.
MIXED = (0.25, 0.5, 0.75)
FINE_TUNING, PRUNING, MIXING = "benign fine-tuning", "2:4 pruning", "original weights mixed in"
STEPS = {"small": 100, "full": 400}
# Parts of the model that are fine-tuned.
PARTS = ("language_model", "merger", "deepstack_merger_list")


def pruned(weight: Any) -> Any:
    """A weight [E, D_in] with the two smallest of every four neighbouring inputs set to zero."""
    import torch

    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % 4)).reshape(rows, -1, 4)
    kept = padded.abs().topk(2, dim=-1).indices
    mask = torch.zeros_like(padded).scatter_(-1, kept, 1.0)
    return (padded * mask).reshape(rows, -1)[:, :columns]


def trials(run: AttackedRun) -> Iterator[Trial]:
    first = run.seeds[0]
    for share in MIXED:
        setting = {"treatment": MIXING, "share": share}
        yield Trial(EDITED, setting, first, partial(mixed, run, share))
    for subject in (EDITED, BEFORE):
        yield Trial(subject, {"treatment": PRUNING}, first, partial(after_pruning, run, subject))
    for subject in (EDITED, BEFORE):
        for seed in run.seeds:
            measure = partial(fine_tuned, run, subject, seed)
            yield Trial(subject, {"treatment": FINE_TUNING}, seed, measure)


def mixed(run: AttackedRun, share: float) -> list[Row]:
    with run.model.scaled(1 - share):
        return [asked(run)]


def after_pruning(run: AttackedRun, subject: str) -> list[Row]:
    with run.model.of(subject), run.model.changed_linears(pruned):
        return [asked(run)]


def asked(run: AttackedRun) -> Row:
    return dict(rates(run.model.vlm, run.naming, run.split(run.seeds[0])[1]))


def fine_tuned(run: AttackedRun, subject: str, seed: int) -> list[Row]:
    """Rates after fine-tuning the language model and the Mergers on images to keep."""
    model, (fit, test) = run.model, run.split(seed)
    linears = [name for part in PARTS for name in linears_in(model.vlm, part)]
    with (
        model.of(subject),
        lora(model.vlm, linears, seed) as (vlm, parameters),
    ):
        keep = [encode(vlm, one) for file in kept(fit, seed) for one in examples(run, file)]
        batches = mixed_batches([], keep, seed)
        steps = train(vlm, parameters, batches, LEARNING_RATE, STEPS[run.budget])
        return [{"steps": step, **rates(vlm, run.naming, test)} for step in steps]


ATTACK = Attack(
    "survival",
    "Treats the model as users do: LoRA fine-tuning on images to keep, mixing with the original "
    "weights, pruning two of every four weights.",
    {
        budget: f"{steps} steps of fine-tuning; {', '.join(map(str, MIXED))} of the original "
        "weights mixed in"
        for budget, steps in STEPS.items()
    },
    CONTROLS,
    True,
    trials,
)
