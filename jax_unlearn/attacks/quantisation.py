"""Attack: quantise the weights of all Linears, which may undo a small change of them.

Round-to-nearest, weights only, symmetric, with a scale for each group of 32 inputs.
"""

from collections.abc import Iterator
from typing import Any

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun

CONTROLS = {BEFORE: "the model before the edit, quantised in the same way"}
BITS = (8, 4, 3)
GROUP = 32


def rounded(weight: Any, bits: int) -> Any:
    """A weight [E, D_in] rounded to 2^bits − 1 levels in each group of inputs."""
    import torch

    rows, columns = weight.shape
    # A last group that is not full has zeros, which do not change its scale.
    padded = torch.nn.functional.pad(weight, (0, -columns % GROUP)).reshape(rows, -1, GROUP)
    most = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return ((padded / scale).round() * scale).reshape(rows, -1)[:, :columns]


def trials(run: AttackedRun) -> Iterator[Trial]:
    seed = run.seeds[0]
    for bits in BITS:
        for subject in (EDITED, BEFORE):

            def measure(bits: int = bits, subject: str = subject) -> list[Row]:
                model = run.model
                amount = 0.0 if subject == BEFORE else 1.0
                with (
                    model.scaled(amount),
                    model.changed_linears(lambda weight: rounded(weight, bits)),
                ):
                    return [dict(rates(model.vlm, run.naming, run.split(seed)[1]))]

            yield Trial(subject, {"bits": bits}, seed, measure)


ATTACK = Attack(
    "quantisation",
    "Rounds the weights of all Linears to 8, 4 and 3 bits (round to nearest, groups of 32).",
    dict.fromkeys(("small", "full"), "every width, once"),
    CONTROLS,
    True,
    trials,
)
