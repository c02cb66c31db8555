"""LEACE on the paths of a run: an adapter in closed form, with the loss that it comes to.

The eraser changes the bias too, which the loss knows nothing of. A column of ones beside the rows
makes a change of the bias one of the weight: Δ' = [B  c] [[A, 0], [0, 1]] on [X 1].
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from jax_unlearn.features.gram import factor
from jax_unlearn.features.statistics import Statistics, merge
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem, linear_part, residual_of
from jax_unlearn.objective.loss import LossWeights, loss
from jax_unlearn.objective.targets import Target
from jax_unlearn.solvers.leace import Moments, leace
from jax_unlearn.solvers.result import Result, history_of


@dataclass(frozen=True)
class Erasable:
    """A path's last Linear in torch's layout, the statistics of both sides and their target.

    The target is for the loss only: what LEACE does is decided by the means.
    """

    weight: Float[np.ndarray, "e d_in"]
    bias: Float[np.ndarray, " e"]
    forget: Sequence[Statistics]
    preserve: Sequence[Statistics]
    target: Target

    def pair(self) -> LoraPair:
        """The eraser, of rank 1."""
        return leace(self.weight, moments(self.forget), moments(self.preserve))

    def linear(self) -> LinearProblem:
        """The problem as the other optimisers have it: without the bias, and no image set aside."""
        return linear_part(self.weight, self.bias, self.forget[0], self.target, self.preserve[0])

    def affine(self) -> LinearProblem:
        """The problem on rows with a column of ones."""
        forget, preserve = reduce(merge, self.forget), reduce(merge, self.preserve)
        rows = forget.equivalent_rows()
        x_f = np.column_stack([rows.x, rows.ones]).astype(np.float32)
        residual = residual_of(rows, self.target, self.weight, self.bias).astype(np.float32)
        x_p = factor(gram_with_ones(preserve), preserve.noise).astype(np.float32)
        counts = float(forget.count), float(preserve.count)
        return LinearProblem(jnp.asarray(x_f), jnp.asarray(residual), jnp.asarray(x_p), *counts)


def erase(paths: Mapping[str, Erasable], weights: LossWeights) -> Result:
    """The adapter that leaves a linear probe nothing to read on any of the paths.

    Args:
        paths: by the names of their Linears.
        weights: of the loss, in whose terms history says what the change comes to: row 0 is no
            change, row 1 the adapter. Its weight is that of B A with the change of the bias.

    Raises:
        UserError: a side without rows, or sides with the same mean.
    """
    begun = time.perf_counter()
    pairs = {name: path.pair() for name, path in paths.items()}
    problem = {name: path.affine() for name, path in paths.items()}
    whole = {name: with_ones(pair) for name, pair in pairs.items()}
    nothing = {name: LoraPair(pair.a, np.zeros_like(pair.b)) for name, pair in whole.items()}
    terms = [
        np.asarray(loss(LoraAdapter(change, alpha=2.0, rank=2), problem, weights)[1])
        for change in (nothing, whole)
    ]
    seconds = time.perf_counter() - begun
    return Result(
        LoraAdapter(pairs, alpha=1.0, rank=1),
        history_of(np.stack(terms), 0),
        1,
        None,
        {"total": seconds},
    )


def moments(parts: Sequence[Statistics]) -> Moments:
    """Of all rows of one side."""
    return reduce(Moments.joined, (Moments(s.count, s.mean, s.full_gram()) for s in parts))


def gram_with_ones(statistics: Statistics) -> Float64[np.ndarray, "wide wide"]:
    """The Gram matrix of [X 1]."""
    total = statistics.total[:, None]
    corner = np.full((1, 1), float(statistics.count))
    return np.block([[statistics.full_gram(), total], [total.T, corner]])


def with_ones(pair: LoraPair) -> LoraPair:
    """The change of weight and bias as one of rank 2 on rows with a column of ones."""
    assert pair.bias is not None
    one = np.zeros((1, pair.a.shape[1] + 1), np.float32)
    one[0, -1] = 1
    a = np.concatenate([np.pad(np.asarray(pair.a), ((0, 0), (0, 1))), one])
    return LoraPair(a, np.column_stack([pair.b, pair.bias]))
