"""A few tokens of an image at fixed places, so that images of any size can be compared by place.

All tokens of many images do not fit into memory, and images of different sizes have different
numbers of them. SIDE × SIDE tokens of each image suffice for their covariance, and the token at one
place of an image corresponds to the one at the same place of another.
"""

import numpy as np
from jaxtyping import Float, Int

from jax_unlearn.features.samples import TapRows

SIDE = 4
TOKENS = SIDE**2


def sample_places(height: int, width: int) -> Int[np.ndarray, " tokens"]:
    """Index of the token at the centre of each cell of a SIDE × SIDE grid over an image.

    Args:
        height: rows of tokens of the image.
        width: its columns; tokens are in row-major order.
    """
    rows, columns = (
        ((np.arange(SIDE) + 0.5) * size / SIDE).astype(int) for size in (height, width)
    )
    return np.asarray((rows[:, None] * width + columns).ravel())


def deviations(
    tokens: Float[np.ndarray, "n tokens d"], means: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "rows d"]:
    """The deviations of sampled tokens from the mean of their image, [n · TOKENS, D]."""
    return (tokens - means[:, None]).reshape(-1, means.shape[1])


def by_image(sampled: TapRows) -> Float[np.ndarray, "n tokens d"]:
    """The sampled tokens of each image that has some."""
    return sampled.x.reshape(-1, TOKENS, sampled.x.shape[1])


def having_tokens(sampled: TapRows) -> Int[np.ndarray, " n"]:
    """Index of each image that has sampled tokens."""
    return sampled.image[::TOKENS]
