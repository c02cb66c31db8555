"""Gram matrices and their factors in float64."""

import numpy as np
from jax import Array
from jaxtyping import Float, Float64
from scipy.linalg import lapack

BLOCK = 4096
# Pivots below this share of the largest are dropped from a factor: float32's rounding, squared.
PIVOT = float(np.finfo(np.float32).eps) ** 2


def gram(*columns: Float[Array | np.ndarray, "n _"]) -> Float64[np.ndarray, "d d"]:
    """XᵀX in float64 of the column-wise concatenation of the arguments, in blocks of rows."""
    width = sum(x.shape[1] for x in columns)
    total = np.zeros((width, width))
    for first in range(0, len(columns[0]), BLOCK):
        blocks = [np.asarray(x[first : first + BLOCK], np.float64) for x in columns]
        block = np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]
        total += block.T @ block
    return total


def lower_half(gram: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, " n"]:
    """The lower triangle of a symmetric matrix, row by row; the inverse of `symmetric`."""
    return gram[np.tril_indices(len(gram))]


def symmetric(half: Float64[np.ndarray, " n"], size: int) -> Float64[np.ndarray, "d d"]:
    """The symmetric matrix of this `lower_half`."""
    whole = np.zeros((size, size))
    whole[np.tril_indices(size)] = half
    whole += np.tril(whole, -1).T
    return whole


def factor(gram: Float64[np.ndarray, "d d"], noise: float = 0.0) -> Float64[np.ndarray, "rank d"]:
    """S with SᵀS = G, by pivoted Cholesky (LAPACK dpstrf); the number of rows is the rank of G.

    Args:
        gram: G.
        noise: pivots up to this count as zero, as do those below PIVOT times the largest.
    """
    largest = float(gram.diagonal().max(initial=0))
    if largest <= noise:
        return np.zeros((0, len(gram)))
    upper, pivots, rank, _ = lapack.dpstrf(gram, tol=max(noise, PIVOT * largest))
    columns = np.zeros((rank, len(gram)))
    columns[:, pivots - 1] = np.triu(upper)[:rank]
    return columns
