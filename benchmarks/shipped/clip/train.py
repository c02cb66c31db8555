"""Contrastive training of images and captions by class, in one stage.

Several images of a batch may be of one class. The target of a caption is all of them; the target of
an image is the caption of its class among those of all classes. Contrastive training from scratch
is slow, so a temporary classification head on the image encoder, whose weight falls to zero, also
teaches it the classes.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.shipped.qwen3_vl.pretrain import one_cycle, optimizers, set_rate

from .batches import Mixer
from .concepts import CLASSES
from .model import pooled
from .tokenizer import TEMPLATES

Log = Callable[[str], None]

SMOOTHING = 0.05
HEAD_UNTIL = 0.6  # of the steps
HURRIED = 0.8  # share of the steps in which only HURRIED_PATCHES of 64 patches are encoded
HURRIED_PATCHES = 32
MOST_SCALE = 100.0


def captions(tokenizer: CLIPTokenizer) -> Tensor:
    """Tokens [templates, classes, T], padded with the end token."""
    texts = [template.format(name) for template in TEMPLATES for name in CLASSES]
    tokens = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    return tokens.view(len(TEMPLATES), len(CLASSES), -1)


def train(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    sampler: Mixer,
    steps: int,
    log: Log,
    batch: int = 128,
    peak: float = 3e-3,
) -> None:
    """Train ``model`` in place."""
    head = nn.Linear(model.config.vision_config.hidden_size, len(CLASSES))
    named = [*model.named_parameters(), *(("head", p) for p in head.parameters())]
    steppers, tokens = optimizers(named, peak), captions(tokenizer)
    start, recent = time.time(), []
    for step in range(steps):
        set_rate(steppers, one_cycle(step, steps, peak))
        images, labels = sampler(batch)
        patches = HURRIED_PATCHES if step < HURRIED * steps else None
        with torch.autocast("cpu", torch.bfloat16):
            features = pooled(model, images, patches)
        features = features.float()
        guess = functional.cross_entropy(head(features), labels, label_smoothing=SMOOTHING)
        match = contrast(model, features, _texts(model, tokens), labels)
        (match + max(0.0, 1 - step / (HEAD_UNTIL * steps)) * guess).backward()
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        recent.append((guess.item(), match.item()))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            means = " ".join(f"{sum(x) / len(x):.3f}" for x in zip(*recent, strict=True))
            log(f"step {step + 1}/{steps} {time.time() - start:.0f}s labels, pairs {means}")
            recent = []


def _texts(model: CLIPModel, tokens: Tensor) -> Tensor:
    """Every class's embedding with a random template, [classes, E]."""
    drawn = torch.randint(len(tokens), (tokens.shape[1],))
    # No mask is needed: the encoder is causal, and is pooled at the end of a caption.
    ids = tokens[drawn, torch.arange(tokens.shape[1])]
    return model.text_projection(model.text_model(ids).pooler_output)


def contrast(model: CLIPModel, features: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """Contrastive loss: the mean of image-to-caption and caption-to-image cross-entropy."""
    images = functional.normalize(model.visual_projection(features), dim=-1)
    scale = model.logit_scale.exp().clamp(max=MOST_SCALE)
    logits = scale * images @ functional.normalize(texts, dim=-1).T
    to_text = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    present = labels.unique()
    own = (present[:, None] == labels).float()
    to_image = functional.cross_entropy(logits.T[present], own / own.sum(1, keepdim=True))
    return (to_text + to_image) / 2
