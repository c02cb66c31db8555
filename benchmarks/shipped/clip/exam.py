"""Held-out evaluation: zero-shot classification with Hugging Face's CLIPModel."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from benchmarks.markdown import caption, right_answers
from benchmarks.shipped.qwen3_vl.images import DRAWINGS as SHAPES
from benchmarks.shipped.qwen3_vl.images import drawing_files
from benchmarks.speed.tower import machine
from jax_unlearn.runtime.assets import ASSETS

from .concepts import CLASSES, CONCEPTS, SETS
from .tokenizer import NAME, ZERO_SHOT

RESULTS = Path(__file__).parents[2] / "results" / "clip_exam.json"
PROMPTS = {"": ZERO_SHOT, ", bare name": NAME}

Scores = dict[str, tuple[int, int]]  # (right answers, questions) by kind of question
Shown = list[tuple[str, Path]]  # (class, image file)
Names = Sequence[str]


class ZeroShot:
    """The model of a checkpoint directory, which encodes texts and image files as unit vectors."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = CLIPModel.from_pretrained(checkpoint).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        return functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    @torch.inference_mode()
    def images(self, files: Sequence[Path], batch: int = 128) -> Tensor:
        parts = []
        for start in range(0, len(files), batch):
            images = [Image.open(file).convert("RGB") for file in files[start : start + batch]]
            pixels = self.processor(images, return_tensors="pt")
            parts.append(self.model.get_image_features(**pixels).pooler_output)
        return functional.normalize(torch.cat(parts), dim=-1)


def held_out(assets: Path) -> tuple[Shown, Shown]:
    """All of easy-VQA's test pictures, and the unseen artists' drawings."""
    test = assets / "images" / "test"
    drawn = [(name, path) for name in CONCEPTS for path in sorted((test / name).iterdir())]
    return drawing_files("test"), drawn


def score_checkpoint(checkpoint: Path, assets: Path) -> Scores:
    """Right answers of a checkpoint, by the images shown and the names to choose from."""
    clip = ZeroShot(checkpoint)
    shapes, drawings = held_out(assets)
    everything = shapes + drawings
    images = dict(zip(everything, clip.images([file for _, file in everything]), strict=True))
    scores: Scores = {}
    for suffix, prompt in PROMPTS.items():
        texts = dict(zip(CLASSES, clip.texts([prompt.format(c) for c in CLASSES]), strict=True))
        for asked, rounds in _questions(shapes, drawings).items():
            counts = [_right(images, shown, texts, names) for shown, names in rounds]
            scores[asked + suffix] = (sum(c[0] for c in counts), sum(c[1] for c in counts))
    return scores


def _questions(shapes: Shown, drawings: Shown) -> dict[str, list[tuple[Shown, Names]]]:
    """For each row of the result, a list of (images shown, names to choose from)."""
    near: list[Names] = [
        [name for name in CLASSES if word in name.split()] for word in _shared_words()
    ]
    rounds = [([row for row in shapes + drawings if row[0] in names], names) for names in near]
    artists = {s.name: [d for d in drawings if d[1].name.startswith(f"{s.name}-")] for s in SETS}
    return {
        "easy-VQA, 24 names": [(shapes, SHAPES)],
        "easy-VQA, all names": [(shapes, CLASSES)],
        f"drawings, {len(CONCEPTS)} names": [(drawings, list(CONCEPTS))],
        "drawings, all names": [(drawings, CLASSES)],
        **{f"drawings by {a}, all names": [(d, CLASSES)] for a, d in artists.items() if d},
        "names that share a word": rounds,
    }


def _shared_words() -> list[str]:
    counts = Counter(word for name in CLASSES for word in name.split())
    return [word for word, count in counts.items() if count > 1]


def _right(
    images: dict[tuple[str, Path], Tensor], shown: Shown, texts: dict[str, Tensor], names: Names
) -> tuple[int, int]:
    seen, named = (torch.stack(x) for x in ([images[s] for s in shown], [texts[n] for n in names]))
    guesses = (seen @ named.T).argmax(1).tolist()
    return sum(names[g] == name for g, (name, _) in zip(guesses, shown, strict=True)), len(shown)


def main() -> None:
    """Evaluate the shipped model, for docs/shipped-models.md."""
    scores = score_checkpoint(ASSETS / "clip" / "checkpoint", ASSETS / "clip")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "scores": scores}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """Right answers on held-out images."""
    found = right_answers("held-out images, names", results["scores"])
    return f"{caption(results['machine'], 'shipped.clip.exam')}\n\n{found}"


if __name__ == "__main__":
    main()
