"""Run the recipe: download, render, train and evaluate; then install the result."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer

from .batches import Mixer
from .exam import score_checkpoint
from .images import load_drawings, write_images
from .model import build_model, build_processor
from .sources import read_merges
from .tokenizer import build_tokenizer
from .train import train

DRAWING_SHARE = 0.65
PASS = {"easy-VQA, 24 names": 0.97, "drawings, 65 names": 0.7}


def main() -> None:
    options = _options()
    start = time.time()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    fresh = options.downloads / "new"
    shutil.rmtree(fresh, ignore_errors=True)
    write_images(fresh / "images", options.downloads)
    tokenizer = build_tokenizer(read_merges(options.downloads))
    model = build_model(tokenizer)
    sampler = Mixer(load_drawings(options.downloads, "train"), DRAWING_SHARE, options.seed)
    train(model, tokenizer, sampler, options.steps, _log)
    _save(model, tokenizer, fresh / "checkpoint")
    _check(fresh)
    shutil.rmtree(options.out, ignore_errors=True)
    shutil.move(fresh, options.out)
    _log(f"{options.out}: done in {time.time() - start:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.shipped.clip", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("jax_unlearn/assets/clip"))
    downloads = Path(tempfile.gettempdir()) / "demo_clip"
    parser.add_argument("--downloads", type=Path, default=downloads, help="kept between runs")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save float16 weights, with a config that makes transformers load them as float32."""
    model.half().save_pretrained(folder)
    config = model.config
    config.dtype = torch.float32
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _check(fresh: Path) -> None:
    scores = score_checkpoint(fresh / "checkpoint", fresh)
    for asked, (right, total) in scores.items():
        _log(f"{asked:40} {right:5}/{total:<5} {right / total:.4f}")
    failed = [asked for asked, least in PASS.items() if scores[asked][0] < least * scores[asked][1]]
    if failed:
        raise SystemExit(f"{fresh}: not good enough at {', '.join(failed)}; the old one is kept")


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
