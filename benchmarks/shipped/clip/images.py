"""Render the drawings, and write the folders of images that ship."""

import io
import shutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.shipped.qwen3_vl.images import SIDE, drawing_files

from .concepts import CLASSES, SETS
from .sources import read_drawings

RENDERED = 96  # larger than SIDE, because drawings are rotated and scaled for training
SHAPES_EACH = {"train": 8, "test": 10}


@dataclass(frozen=True)
class Drawings:
    """``pixels`` uint8 [n, 4, RENDERED, RENDERED], colours times alpha, and ``labels`` [n]."""

    pixels: Tensor
    labels: Tensor


def load_drawings(downloads: Path, split: str) -> Drawings:
    """Every drawing by the artists of a split."""
    found = [row for s in SETS if s.split == split for row in read_drawings(s, downloads)]
    pixels = np.stack([_premultiplied(render(svg, RENDERED)) for _, _, svg in found])
    labels = torch.tensor([CLASSES.index(concept) for concept, _, _ in found])
    return Drawings(torch.from_numpy(pixels), labels)


def render(svg: str, side: int) -> Image.Image:
    """Render an SVG as RGBA ``side`` x ``side``, centred on a transparent page."""
    drawn = Image.open(io.BytesIO(_resvg().svg_to_bytes(svg, width=side, height=side)))
    page = Image.new("RGBA", (side, side))
    page.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return page


@cache
def _resvg() -> ModuleType:
    try:
        return import_module("resvg_py")
    except ImportError as error:
        raise SystemExit("the recipe draws with resvg: pip install resvg-py") from error


def _premultiplied(image: Image.Image) -> np.ndarray:
    """uint8 [4, S, S] with premultiplied alpha, which interpolates without halos."""
    rgba = np.asarray(image).astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return rgba.round().astype(np.uint8).transpose(2, 0, 1)


def on_white(image: Image.Image) -> Image.Image:
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")


def write_images(folder: Path, downloads: Path) -> None:
    """``folder/{train,test}/<class>/``: some of the shapes, and all drawings that may ship."""
    for split in ("train", "test"):
        _write_shapes(folder / split, split)
        _write_drawings(folder / split, split, downloads)


def _write_shapes(folder: Path, split: str) -> None:
    """Copy the author's files of a split."""
    written: dict[str, int] = {}
    for name, path in drawing_files(split):
        written[name] = written.get(name, 0) + 1
        if written[name] <= SHAPES_EACH[split]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name / f"easy-vqa-{path.name}")


def _write_drawings(folder: Path, split: str, downloads: Path) -> None:
    """Write the drawings of a split, named by set and icon so that their artist is known."""
    sets = [s for s in SETS if s.split == split and s.ships]
    rows = [(s.name, *row) for s in sets for row in read_drawings(s, downloads)]
    for artist, concept, icon, svg in rows:
        here = folder / concept
        here.mkdir(parents=True, exist_ok=True)
        on_white(render(svg, SIDE)).save(here / f"{artist}-{icon}.webp", lossless=True)
