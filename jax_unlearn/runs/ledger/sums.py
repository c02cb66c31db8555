"""Sums of low-rank changes, as one adapter."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jax_unlearn.models.lora import LoraAdapter, LoraPair

Matrix = Float64[np.ndarray, "_ _"]


class Change(NamedTuple):
    """A change b @ a of one Linear's weight, and the change of its bias or None.

    b: [E, q]; a: [q, D_in]; bias: [E].
    """

    b: Matrix
    a: Matrix
    bias: Float64[np.ndarray, " e"] | None = None


# Changes by the names of the Linears.
Changes = Mapping[str, Change]


def changes_of(adapter: LoraAdapter) -> dict[str, Change]:
    """The changes of an adapter, without the columns that change nothing."""
    found = {}
    for name, pair in adapter.pairs.items():
        b, a = (np.asarray(part, np.float64) for part in (pair.b, pair.a))
        used = b.any(axis=0)
        bias = None if pair.bias is None else adapter.scale * np.asarray(pair.bias, np.float64)
        found[name] = Change(adapter.scale * b[:, used], a[used], bias)
    return found


def added(
    parts: Sequence[Changes], strengths: Sequence[float], rank_after: int | None = None
) -> LoraAdapter:
    """The sum of changes, each times its strength: their factors side by side, or cut by an SVD.

    A sum of more ranks than a Linear allows has as many as it does, which loses nothing. Linears
    that need fewer than others get columns and rows of zeros.

    Args:
        parts: changes of the same Linears.
        strengths: by which each part is multiplied.
        rank_after: the largest rank of the sum.
    """
    sums = {}
    for name in parts[0]:
        own = [part[name] for part in parts]
        b = np.concatenate([k * one.b for k, one in zip(strengths, own, strict=True)], axis=1)
        a = np.concatenate([one.a for one in own])
        most = min(len(b), a.shape[1], rank_after or len(a))
        biases = [k * one.bias for k, one in zip(strengths, own, strict=True)
                  if one.bias is not None]  # fmt: skip
        bias = np.sum(biases, axis=0) if biases else None
        sums[name] = Change(*(cut(b, a, most) if len(a) > most else (b, a)), bias)
    rank = max(1, *(len(one.a) for one in sums.values()))
    pairs = {name: padded(one, rank) for name, one in sums.items()}
    return LoraAdapter(pairs, alpha=float(rank), rank=rank)


def padded(change: Change, rank: int) -> LoraPair:
    """The change as factors of this rank, in float32."""
    more = rank - len(change.a)
    a = np.pad(change.a, ((0, more), (0, 0))).astype(np.float32)
    b = np.pad(change.b, ((0, 0), (0, more))).astype(np.float32)
    return LoraPair(a, b, None if change.bias is None else change.bias.astype(np.float32))


def cut(b: Matrix, a: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The nearest product of a rank to b @ a; missing directions are zeros."""
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    u, sizes, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    kept = min(rank, len(sizes))
    root = np.sqrt(sizes[:kept])
    new_b, new_a = np.zeros((len(b), rank)), np.zeros((rank, a.shape[1]))
    new_b[:, :kept] = left @ u[:, :kept] * root
    new_a[:kept] = root[:, None] * (v[:kept] @ right.T)
    return new_b, new_a
