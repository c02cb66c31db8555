"""Gram matrices and their factors in float64."""

import numpy as np
from jax import Array
from jaxtyping import Float, Float64
from scipy.linalg import lapack

BLOCK = 4096


# Pivots below this share of the largest are dropped from a factor: float32's rounding, squared.
PIVOT = float(np.finfo(np.float32).eps) ** 2


def gram(*columns: Float[Array | np.ndarray, "n _"]) -> Float64[np.ndarray, "d d"]:
    """XᵀX in float64 of the columns side by side, a block of rows at a time."""
    width = sum(x.shape[1] for x in columns)
    total = np.zeros((width, width))
    for first in range(0, len(columns[0]), BLOCK):
        blocks = [np.asarray(x[first : first + BLOCK], np.float64) for x in columns]
        block = np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]
        total += block.T @ block
    return total


def lower_half(gram: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, " n"]:
    """Of a symmetric matrix, the numbers that `symmetric` needs."""
    return gram[np.tril_indices(len(gram))]


def symmetric(half: Float64[np.ndarray, " n"], size: int) -> Float64[np.ndarray, "d d"]:
    """The matrix whose `lower_half` this is."""
    whole = np.zeros((size, size))
    whole[np.tril_indices(size)] = half
    whole += np.tril(whole, -1).T
    return whole


def factor(gram: Float64[np.ndarray, "d d"], noise: float = 0.0) -> Float64[np.ndarray, "rank d"]:
    """S with SᵀS = G, by Cholesky with pivots: as many rows as G has rank.

    noise: pivots up to this are none, nor are any below the share `PIVOT` of the largest.
    """
    largest = float(gram.diagonal().max(initial=0))
    if largest <= noise:
        return np.zeros((0, len(gram)))
    upper, pivots, rank, _ = lapack.dpstrf(gram, tol=max(noise, PIVOT * largest))
    columns = np.zeros((rank, len(gram)))
    columns[:, pivots - 1] = np.triu(upper)[:rank]
    return columns
