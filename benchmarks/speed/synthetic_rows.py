"""Rows as a Merger's GELU might give them out, made from a seed a block at a time.

    x = gelu(c + (z + m) M + noise)        z [64]: half of its variance the image's, half the row's

The latent z has a variance that falls as 1 / j, so that a few directions hold most of the rows, as
in real features; c is -0.5 on average, so that all rows share a large mean, as behind a GELU. The
noise has half the latent part's size and its own value in every entry: no direction of x is empty,
and Gram matrices have full rank. m moves images to forget along one direction; it is zero for
those to preserve. The frozen Linear is normal, W / √D_in, and keeps rows at about their size; the
target is one random unit vector an image, far shorter than the outputs, as published.
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
        d_in, e: the Linear's widths.
        tokens: rows an image.
        seed: of everything; the same numbers give the same rows, however many are asked for.
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
        """(Which image, x) of so many rows of FORGET or PRESERVE; no image is in two blocks."""
        step = self.tokens * max(1, BLOCK // self.tokens)
        for block, first in enumerate(range(0, rows, step)):
            n = min(step, rows - first)
            yield (first + np.arange(n)) // self.tokens, self._block(side, block, n)

    def rows(self, side: int, rows: int) -> Float[np.ndarray, "n d_in"]:
        """The same in memory."""
        return np.concatenate([x for _, x in self.blocks(side, rows)])

    def unit_vectors(self, rows: int) -> Float[np.ndarray, "images e"]:
        """The target of each image of so many rows to forget."""
        random = np.random.default_rng([self.seed, TARGET])
        vectors = normal(random, math.ceil(rows / self.tokens), self.e)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def linear_arrays(self, forget: int, preserve: int) -> tuple[np.ndarray, ...]:
        """What `objective.linear_problem` takes: weight, bias, forget, target, preserve."""
        target = self.unit_vectors(forget)[np.arange(forget) // self.tokens]
        sides = self.rows(FORGET, forget), self.rows(PRESERVE, preserve)
        return self.weight, self.bias, sides[0], target, sides[1]

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original Linear's."""
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
    """The exact one, as in the Mergers."""
    share = erf(x * np.float32(0.5**0.5))
    share += 1
    share *= x
    share /= 2
    return share
