"""Drawings like easy-VQA's, in any number: one shape of one colour on a pale page.

The shipped drawings are too few to measure what a reader with hundreds of labelled images finds.
Sizes, colours and pages follow the distribution seen in easy-VQA's pictures; the code is our own.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .images import COLORS, DRAWINGS, SHAPES, SIDE

RGB = dict(
    zip(
        COLORS,
        (
            (0, 0, 0), (0, 0, 255), (165, 42, 42), (128, 128, 128), (0, 255, 0), (255, 0, 0),
            (0, 128, 128), (255, 255, 0),
        ),
        strict=True,
    )
)  # fmt: skip
# Drawn this many times larger and then reduced, which smooths the edges.
LARGER = 4
SMALLEST, LARGEST = 8, 33
PALEST = 230


def drawing(color: str, shape: str, random: np.random.Generator) -> Image.Image:
    """One picture of SIDE × SIDE pixels."""
    width, height = random.uniform(SMALLEST, LARGEST, 2)
    if shape != "rectangle":
        height = width
    if shape == "triangle":
        # The height of an equilateral triangle.
        height = width * 3**0.5 / 2
    left, top = (random.uniform(1, SIDE - 1 - size) for size in (width, height))
    page = tuple(random.integers(PALEST, 256, 3).tolist())
    image = Image.new("RGB", (SIDE * LARGER, SIDE * LARGER), page)
    draw = ImageDraw.Draw(image)
    x0, y0, x1, y1 = (LARGER * v for v in (left, top, left + width, top + height))
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), RGB[color])
    elif shape == "rectangle":
        draw.rectangle((x0, y0, x1, y1), RGB[color])
    else:
        draw.polygon(((x0, y1), (x1, y1), ((x0 + x1) / 2, y0)), RGB[color])
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def drawings(name: str, split: str, seed: int = 0) -> Iterator[Image.Image]:
    """Endless pictures of a class such as "red triangle"; splits and seeds share none."""
    color, shape = name.split()
    random = np.random.default_rng([seed, *split.encode(), DRAWINGS.index(name)])
    while True:
        yield drawing(color, shape, random)


def write_drawings(out: Path, counts: dict[str, dict[str, int]], seed: int = 0) -> None:
    """Write `out`/<split>/<class>/NNNN.png.

    Args:
        out: the folder.
        counts: number of pictures by split and class.
        seed: seed of the pictures.
    """
    for split, of_split in counts.items():
        for name, count in of_split.items():
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in zip(range(count), drawings(name, split, seed), strict=False):
                image.save(folder / f"{i:04d}.png")


def counts_for(concept: str, forget: int, preserve: int) -> dict[str, int]:
    """Pictures of each class: `forget` in all of those of a concept, `preserve` of each other.

    Args:
        concept: a shape, a colour or a pair of both.
        forget: number of pictures that show the concept, shared equally by its classes.
        preserve: number of pictures of each other class.
    """
    words = set(concept.split())
    if not words or not words <= {*SHAPES, *COLORS}:
        raise ValueError(f"{concept!r}: must be a shape, a colour or a pair of both")
    shown = [name for name in DRAWINGS if words <= set(name.split())]
    return {name: -(-forget // len(shown)) if name in shown else preserve for name in DRAWINGS}
