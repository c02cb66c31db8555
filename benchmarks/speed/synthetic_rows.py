"""Synthetic rows that resemble the output of a Merger's GELU, generated from a seed in blocks.

    x = gelu(c + (z + m) M + noise)        z [64]: half of its variance the image's, half the row's

The standard deviations of the latent z fall as 1 / √j, so that a few directions have most of the
variance, as in real features; c is -0.5 on average, so that all rows share a large mean, as after a
GELU. The noise is independent in every entry and half as large as the latent part, so that Gram
matrices have full rank. m shifts forget images along one direction; it is zero for preserve images.
The frozen Linear is normal, W / √D_in, and roughly keeps the norms of rows; the target is one
random unit vector per image, much shorter than the outputs, as published.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import erf

LATENT = 64
BLOCK = 4096
# Streams of the seed.
PRESERVE, FORGET, LINEAR, TARGET = range(4)


class Source:
    """A Linear, its rows and their targets.

    Args:
        d_in: input width of the Linear.
        e: output width.
        tokens: rows per image.
        seed: seed of everything; the first rows do not depend on the number of rows.
    """

    def __init__(self, d_in: int, e: int, tokens: int = 50, seed: int = 0) -> None:
        self.d_in, self.e, self.tokens, self.seed = d_in, e, tokens, seed
        random = np.random.default_rng([seed, LINEAR])
        self.weight = normal(random, e, d_in) / np.float32(d_in**0.5)
        self.bias = normal(random, e) / 10
        sizes = 1 / np.sqrt(np.arange(1, LATENT + 1))
        self.sizes = (sizes / np.linalg.norm(sizes)).astype(np.float32)
        self.mixing = normal(random, LATENT, d_in)
        self.shift = normal(random, d_in) / 2 - np.float32(0.5)
        moved = normal(random, LATENT)
        self.moved = moved / np.linalg.norm(moved)

    def blocks(
        self, side: int, rows: int
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n d_in"]]]:
        """Yields (image of each row, x) for blocks of `rows` rows; no image is in two blocks.

        Args:
            side: FORGET or PRESERVE.
            rows: number of rows.
        """
        step = self.tokens * max(1, BLOCK // self.tokens)
        for block, first in enumerate(range(0, rows, step)):
            n = min(step, rows - first)
            yield (first + np.arange(n)) // self.tokens, self._block(side, block, n)

    def rows(self, side: int, rows: int) -> Float[np.ndarray, "n d_in"]:
        """The rows of `blocks` in memory."""
        return np.concatenate([x for _, x in self.blocks(side, rows)])

    def unit_vectors(self, rows: int) -> Float[np.ndarray, "images e"]:
        """The target of each image of `rows` forget rows."""
        random = np.random.default_rng([self.seed, TARGET])
        vectors = normal(random, math.ceil(rows / self.tokens), self.e)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def linear_arrays(self, forget: int, preserve: int) -> tuple[np.ndarray, ...]:
        """The arguments of `objective.linear_problem`: weight, bias, forget, target, preserve."""
        target = self.unit_vectors(forget)[np.arange(forget) // self.tokens]
        sides = self.rows(FORGET, forget), self.rows(PRESERVE, preserve)
        return self.weight, self.bias, sides[0], target, sides[1]

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The output of the original Linear."""
        return x @ self.weight.T + self.bias

    def _block(self, side: int, block: int, n: int) -> Float[np.ndarray, "n d_in"]:
        random = np.random.default_rng([self.seed, side, block])
        of_images = normal(random, math.ceil(n / self.tokens), LATENT)
        z = of_images[np.arange(n) // self.tokens] + normal(random, n, LATENT)
        z *= self.sizes / np.float32(2**0.5)
        if side == FORGET:
            z += self.moved
        x = z @ self.mixing + self.shift
        x += normal(random, n, self.d_in) / 2
        return gelu(x)


def normal(random: np.random.Generator, *shape: int) -> Any:
    return random.standard_normal(shape, dtype=np.float32)


def gelu(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The exact GELU, as in the Mergers."""
    share = erf(x * np.float32(0.5**0.5))
    share += 1
    share *= x
    share /= 2
    return share
