"""First stage: train the tower to classify, with a classification head on each Merger.

With answers only, colours are learnt in minutes but shapes much later; labels teach both. A head on
every Merger makes the DeepStack mergers carry the classes as well as the main Merger.
"""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import Pictures, Sampler
from .images import CLASSES
from .model import BatchedTower, patchify

Log = Callable[[str], None]


class LabelHeads(nn.Module):
    """Mean output of each Merger -> logits over the classes, [mergers, B, C]."""

    def __init__(self, width: int, mergers: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(CLASSES)) for _ in range(mergers))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([h(x.mean(1)) for h, x in zip(self.heads, features, strict=True)])


def optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, heads, norms and biases."""
    named = list(parameters)
    matrices = [
        p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name
    ]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def set_rate(steppers: list[torch.optim.Optimizer], rate: float) -> None:
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = rate


def one_cycle(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then linear decay to zero."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def pretrain(
    tower: BatchedTower,
    sampler: Sampler,
    held_out: dict[str, Pictures],
    steps: int,
    log: Log,
    batch: int = 128,
    peak: float = 3e-3,
) -> None:
    """Train ``tower`` in place; the heads are discarded."""
    visual = tower.visual
    heads = LabelHeads(visual.config.out_hidden_size, 1 + len(visual.deepstack_visual_indexes))
    steppers = optimizers([*visual.named_parameters(), *heads.named_parameters()], peak)
    start, recent = time.time(), []
    for step in range(steps):
        set_rate(steppers, one_cycle(step, steps, peak))
        pixels, labels = sampler(batch)
        logits = heads(tower(patchify(pixels)))
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels.repeat(len(logits)), label_smoothing=0.05
        )
        loss.backward()
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            scores = {k: score(tower, heads, v) for k, v in held_out.items()}
            spent, mean = time.time() - start, sum(recent) / len(recent)
            log(f"labels {step + 1}/{steps} {spent:.0f}s loss {mean:.3f} {scores}")
            recent = []


@torch.inference_mode()
def score(tower: BatchedTower, heads: LabelHeads, pictures: Pictures) -> list[float]:
    """Held-out accuracy of each Merger's head."""
    chunks = pictures.pixels.split(256)
    guesses = torch.cat([heads(tower(patchify(c))).argmax(-1) for c in chunks], dim=1)
    return [round(a, 3) for a in (guesses == pictures.labels).float().mean(1).tolist()]
