"""Drawings of a class that no model was trained on by us: five-pointed stars.

The control of relearning teaches the edited model the concept's name for them, with the same
budget: what that reaches is what learning from nothing reaches.
"""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

# Drawn this many times larger and then reduced, which smooths the edges.
LARGER = 4
POINTS = 5
# Radius of the outer points as a share of the shorter side, and of the inner ones of that.
RADIUS, INNER = (0.15, 0.35), 0.4
PALEST = 230


def stars(size: tuple[int, int], seed: int) -> Iterator[Image.Image]:
    """Endless drawings of `size` (width, height), each of one colour on a pale page."""
    random = np.random.default_rng([seed, POINTS])
    while True:
        yield star(size, random)


def star(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    width, height = (LARGER * side for side in size)
    radius = min(width, height) * random.uniform(*RADIUS)
    x, y = random.uniform(radius, width - radius), random.uniform(radius, height - radius)
    turn = random.uniform(0, 2 * math.pi)
    corners = [
        (x + r * math.cos(angle), y + r * math.sin(angle))
        for i in range(2 * POINTS)
        for r, angle in [(radius if i % 2 == 0 else INNER * radius, turn + math.pi * i / POINTS)]
    ]
    page, ink = random.integers(PALEST, 256, 3), random.integers(0, 200, 3)
    image = Image.new("RGB", (width, height), tuple(page.tolist()))
    ImageDraw.Draw(image).polygon(corners, fill=tuple(ink.tolist()))
    return image.resize(size, Image.Resampling.BILINEAR)
