"""Held-out evaluation: the shipped questions about the shipped test images."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.markdown import caption, right_answers
from benchmarks.speed.tower import machine
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import VLM, load_vlm
from jax_unlearn.runtime.assets import ASSETS

from .images import drawing_files, easy_vqa_questions
from .questions import MEDIUM, NAME, is_drawing

RESULTS = Path(__file__).parents[2] / "results" / "exam.json"

Scores = dict[str, tuple[int, int]]  # (right answers, questions) by family


def held_out_exam(vlm: VLM, assets: Path) -> Scores:
    """Ask every question of questions.json about every test image it has an answer for."""
    folders = sorted((assets / "images" / "test").iterdir())
    named = [(f.name, Image.open(p).convert("RGB")) for f in folders for p in sorted(f.iterdir())]
    scores: Scores = {}
    for row in json.loads((assets / "questions.json").read_text()):
        asked = [(name, image) for name, image in named if name in row["answers"]]
        replies = ask(vlm, [image for _, image in asked], row["question"])
        for (name, _), reply in zip(asked, replies, strict=True):
            _count(scores, family(row["question"], name), reply == row["answers"][name])
    return scores


def family(question: str, name: str) -> str:
    """The family of a question, separately for drawings and photos."""
    kind = "drawings" if is_drawing(name) else "photos"
    if question in MEDIUM:
        return f"medium, {kind}"
    if question in NAME:
        return f"name, {kind}"
    if question.startswith("what"):
        return "color" if "color" in question else "shape"
    return f"yes/no, {kind}"


def easy_vqa_exam(vlm: VLM) -> Scores:
    """The author's own questions about all of the author's test pictures."""
    pictures = {int(p.stem): Image.open(p).convert("RGB") for _, p in drawing_files("test")}
    asked = defaultdict(list)
    for question, answer, number in easy_vqa_questions("test"):
        if number in pictures:
            asked[question].append((pictures[number], answer))
    scores: Scores = {}
    for question, rows in asked.items():
        replies = ask(vlm, [picture for picture, _ in rows], question)
        for (_, answer), reply in zip(rows, replies, strict=True):
            kind = "yes/no" if answer in ("yes", "no") else "open"
            denied = " denied" if {"not", "no"} & set(question.split()) else ""
            _count(scores, f"easy-VQA {kind}{denied}", reply == answer)
    return scores


def _count(scores: Scores, key: str, right: bool) -> None:
    good, total = scores.get(key, (0, 0))
    scores[key] = (good + right, total + 1)


def main() -> None:
    """Evaluate the shipped model, for docs/shipped-models.md."""
    vlm = load_vlm(ASSETS / "checkpoint")
    scores = {**held_out_exam(vlm, ASSETS), **easy_vqa_exam(vlm)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "scores": scores}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """Right answers on held-out images."""
    found = right_answers("questions about held-out images", results["scores"])
    return f"{caption(results['machine'], 'shipped.qwen3_vl.exam')}\n\n{found}"


if __name__ == "__main__":
    main()
