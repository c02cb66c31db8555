"""Random training images: easy-VQA's shapes shifted, drawings rotated, scaled and recoloured."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.shipped.qwen3_vl.batches import Sampler
from benchmarks.shipped.qwen3_vl.batches import drawings as shapes
from benchmarks.shipped.qwen3_vl.images import SIDE

from .images import Drawings


class Mixer:
    """Batches with a fixed share of drawings, the rest easy-VQA's shapes."""

    def __init__(self, drawings: Drawings, share: float, seed: int) -> None:
        pictures = shapes("train")
        # Only the first of this sampler's two sources is used (share 0); its shifts keep colours.
        self.shapes = Sampler((pictures, pictures), share=0.0, seed=seed)
        self.drawings = Drawer(drawings, seed)
        self.share = share

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        """uint8 [batch, 64, 64, 3] and labels [batch] into CLASSES."""
        n = round(batch * self.share)
        drawn, names = self.drawings(n)
        moved, more_names = self.shapes(batch - n)
        return torch.cat([drawn, moved]), torch.cat([names, more_names])


class Drawer:
    """Draws concepts with equal probability, with a random view, light and page."""

    def __init__(
        self,
        drawings: Drawings,
        seed: int,
        zoom: tuple[float, float] = (0.72, 1.15),
        turn: float = 15.0,  # degrees
        slant: float = 0.12,
        shift: float = 0.15,  # of the page's half
        tint: float = 0.15,
        white: float = 0.6,  # share of white pages; the rest are pale
    ) -> None:
        self.drawings = drawings
        counts = torch.bincount(drawings.labels)
        self.weights = 1.0 / counts[drawings.labels]
        self.generator = torch.Generator().manual_seed(seed)
        self.zoom, self.turn, self.slant, self.shift = zoom, turn, slant, shift
        self.tint, self.white = tint, white

    def __call__(self, n: int) -> tuple[Tensor, Tensor]:
        pick = torch.multinomial(self.weights, n, replacement=True, generator=self.generator)
        drawn = self.drawings.pixels[pick].float() / 255
        grid = functional.affine_grid(self._views(n), [n, 4, SIDE, SIDE], align_corners=False)
        drawn = functional.grid_sample(drawn, grid, align_corners=False)
        colour, alpha = drawn[:, :3], drawn[:, 3:]
        seen = (colour * self._tints(n)).minimum(alpha) + (1 - alpha) * self._pages(n)
        pixels = (seen * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), self.drawings.labels[pick]

    def _views(self, n: int) -> Tensor:
        """Affine maps [n, 2, 3] from image points to points of the drawing."""
        angle = self._within(n, math.radians(self.turn))
        size = 1 / (self.zoom[0] + (self.zoom[1] - self.zoom[0]) * self._uniform(n))
        mirror = 1 - 2 * (self._uniform(n) < 0.5).float()
        cos, sin = angle.cos() * size, angle.sin() * size
        slant = self._within(n, self.slant) * size
        x = torch.stack([cos * mirror, slant - sin, self._within(n, self.shift)], dim=1)
        y = torch.stack([sin * mirror, cos, self._within(n, self.shift)], dim=1)
        return torch.stack([x, y], dim=1)

    def _tints(self, n: int) -> Tensor:
        """A gain for the light and one per colour channel, small enough to keep a red heart red."""
        light = 1 + self._within(n, self.tint)[:, None]
        colours = 1 + self.tint * (2 * torch.rand(n, 3, generator=self.generator) - 1)
        return (light * colours)[..., None, None]

    def _pages(self, n: int) -> Tensor:
        pale = 0.6 + 0.4 * torch.rand(n, 3, generator=self.generator)
        white = (self._uniform(n) < self.white)[:, None]
        return torch.where(white, torch.ones(()), pale)[..., None, None]

    def _uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator)

    def _within(self, n: int, limit: float) -> Tensor:
        return limit * (2 * self._uniform(n) - 1)
