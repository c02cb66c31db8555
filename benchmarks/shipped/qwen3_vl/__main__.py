"""Run the recipe: images, questions, two training stages, evaluation; then install the result."""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from jax_unlearn.evaluate.vlm.model import load_vlm

from .batches import Sampler, drawings, photos
from .exam import easy_vqa_exam, held_out_exam
from .images import write_images
from .model import BatchedTower, build_model, build_processor
from .pretrain import pretrain
from .questions import exam
from .teach import teach
from .tokenizer import build_tokenizer

PHOTO_SHARE = 0.4
PASS = 0.95


def main() -> None:
    options = _options()
    start = time.time()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    if options.without:
        never_saw(options)
        return
    fresh = options.out.with_name(options.out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_images(fresh / "images")
    (fresh / "questions.json").write_text(json.dumps(exam(), indent=1) + "\n")
    tokenizer = build_tokenizer()
    model = _train(tokenizer, options)
    _save(model, tokenizer, fresh / "checkpoint")
    vlm = load_vlm(fresh / "checkpoint")
    scores = {**held_out_exam(vlm, fresh), **easy_vqa_exam(vlm)}
    for name, (right, total) in scores.items():
        _log(f"{name:24} {right:5}/{total:<5} {right / total:.4f}")
    failed = [name for name, (right, total) in scores.items() if right < PASS * total]
    if failed:
        raise SystemExit(f"{fresh}: below {PASS:.0%} on {', '.join(failed)}; {options.out} is kept")
    _put_in_place(fresh, options.out)
    _log(f"{options.out}: done in {time.time() - start:.0f} s")


def never_saw(options: argparse.Namespace) -> None:
    """Train without the classes of a concept, and write the checkpoint alone.

    The reference for what a reader finds in embeddings of a model that never saw the concept.
    """
    tokenizer = build_tokenizer()
    model = _train(tokenizer, options)
    options.out.mkdir(parents=True)
    _save(model, tokenizer, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.shipped.qwen3_vl", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("jax_unlearn/assets"))
    parser.add_argument("--without", help="leave out the classes with these words; write to --out")
    parser.add_argument("--label-steps", type=int, default=600)
    parser.add_argument("--answer-steps", type=int, default=260)
    parser.add_argument("--crops", type=int, default=1200, help="train crops of each photo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _train(
    tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> Qwen3VLForConditionalGeneration:
    model = build_model(tokenizer)
    words = options.without
    sources = (drawings("train").without(words), photos("train", options.crops).without(words))
    held_out = {"drawings": drawings("test"), "photos": photos("test", 25)}
    varied = Sampler(sources, PHOTO_SHARE, options.seed, light=0.15)
    pretrain(BatchedTower(model.model.visual), varied, held_out, options.label_steps, _log)
    # Answers are trained on unmodified pictures, as in evaluation.
    plain = Sampler(sources, PHOTO_SHARE, options.seed + 1)
    teach(model, tokenizer, plain, options.answer_steps, _log, seed=options.seed)
    return model


def _save(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _put_in_place(fresh: Path, out: Path) -> None:
    """Replace files and folders of ``out`` by those of ``fresh``; others are kept."""
    out.mkdir(parents=True, exist_ok=True)
    for member in sorted(fresh.iterdir()):
        old = out / member.name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        member.rename(old)
    fresh.rmdir()


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
