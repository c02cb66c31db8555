"""Training images in memory: randomly shifted drawings, and crops of photos."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import CLASSES, PHOTOS, SIDE, drawing_files, photo_crops


@dataclass(frozen=True)
class Pictures:
    """``pixels`` uint8 [n, 64, 64, 3], ``labels`` [n] into CLASSES, ``room`` [n, 4].

    ``room``: pixels by which the content can be shifted up, down, left and right.
    """

    pixels: Tensor
    labels: Tensor
    room: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, concept: str | None) -> "Pictures":
        """The pictures of classes without some of a concept's words; all if it is None."""
        if concept is None:
            return self
        words = set(concept.split())
        shown = torch.tensor([words <= set(name.split()) for name in CLASSES])
        keep = ~shown[self.labels]
        return Pictures(self.pixels[keep], self.labels[keep], self.room[keep])


def drawings(split: str) -> Pictures:
    """All of easy-VQA's pictures of a split whose class follows from its questions."""
    files = drawing_files(split)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for _, path in files])
    return _pictures(pixels, [name for name, _ in files], np.stack([_room(p) for p in pixels]))


def photos(split: str, count: int) -> Pictures:
    """``count`` crops of each photo; the first ones are those that ship."""
    files = [(p.name, f) for p in PHOTOS for f in photo_crops(p, split, count)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for _, f in files])
    return _pictures(pixels, [name for name, _ in files], np.zeros((len(files), 4), int))


def _pictures(pixels: np.ndarray, names: list[str], room: np.ndarray) -> Pictures:
    labels = torch.tensor([CLASSES.index(name) for name in names])
    return Pictures(torch.from_numpy(pixels), labels, torch.from_numpy(room))


def _room(pixels: np.ndarray) -> np.ndarray:
    """Numbers of empty rows above and below, and empty columns left and right of the drawing."""
    # The page is the most frequent colour.
    codes = pixels.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    values, counts = np.unique(codes, return_counts=True)
    drawn = codes != values[counts.argmax()]
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return np.array([rows[0], SIDE - 1 - rows[-1], columns[0], SIDE - 1 - columns[-1]])


class Sampler:
    """Random batches with a fixed share of photos, randomly mirrored and shifted.

    A shifted drawing equals, pixel for pixel, what the author's generator would draw at another
    place on the page; nothing is cropped, stretched or filled.
    """

    def __init__(
        self, sources: tuple[Pictures, Pictures], share: float, seed: int, light: float = 0.0
    ) -> None:
        self.drawings, self.photos = sources
        self.share = share
        self.light = light  # photos are up to this share darker or brighter
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        """uint8 [batch, 64, 64, 3] and labels [batch]."""
        n = round(batch * self.share)
        photos, names = self._draw(self.photos, n)
        drawings, more_names = self._draw(self.drawings, batch - n)
        return torch.cat([self._lit(photos), drawings]), torch.cat([names, more_names])

    def _lit(self, pixels: Tensor) -> Tensor:
        if not self.light:
            return pixels
        gain = 1 + self.light * (2 * torch.rand(len(pixels), generator=self.generator) - 1)
        return (pixels * gain[:, None, None, None]).clamp(0, 255).to(torch.uint8)

    def _draw(self, pictures: Pictures, n: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(pictures), (n,), generator=self.generator)
        room = pictures.room[pick]
        rows = self._moved(room[:, 0], room[:, 1])
        columns = self._moved(room[:, 2], room[:, 3])
        mirrored = torch.rand(n, 1, generator=self.generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        pixels = pictures.pixels[pick[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels, pictures.labels[pick]

    def _moved(self, before: Tensor, after: Tensor) -> Tensor:
        """Source positions [n, 64] of a cyclic shift within the room, where only page wraps."""
        draw = torch.rand(len(before), generator=self.generator)
        shift = (draw * (before + after + 1)).long() - before
        return (torch.arange(SIDE) - shift[:, None]) % SIDE
