"""LEACE: the least change of a Linear's outputs that leaves no linear probe anything to read.

A linear probe can tell two sides apart if and only if their means differ. With the outputs y, their
mean μ and covariance Σ over all rows, and δ the forget side's mean minus the preserve side's, the
affine change that makes the means equal and moves the outputs least is (Belrose et al. 2023,
"LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819, here for two classes)

    y' = y − δ vᵀ(y − μ)        v = Σ⁻¹δ / (δᵀΣ⁻¹δ)

The means become equal whatever Σ is, for vᵀδ = 1: an error in Σ costs nothing but more movement.
The inverse of a covariance that was taken from hardly more rows than outputs costs much of it, and
the one from fewer does not exist; so Σ is shrunk, as the authors' package concept-erasure does.

On a run's projectors it is an adapter (`erase`). The eraser changes the bias too, which the loss
does not have. A column of ones beside the rows makes a change of the bias one of the weight:
Δ' = [B  c] [[A, 0], [0, 1]] on [X 1].
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from jax_unlearn.features.gram import factor
from jax_unlearn.features.statistics import Statistics, merge
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem, linear_part, residual_of
from jax_unlearn.objective.loss import LossWeights, loss
from jax_unlearn.objective.targets import Target
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.result import Result, history_of

# Features are float32: means that are closer than it resolves are the same.
RESOLUTION = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class RowMoments:
    """How many rows X there are, their mean, and XᵀX, which is not centred; float64."""

    count: int
    mean: Float64[np.ndarray, " d"]
    gram: Float64[np.ndarray, "d d"]

    def joined(self, other: "RowMoments") -> "RowMoments":
        """Those of the rows of both."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        return RowMoments(count, mean, self.gram + other.gram)

    def covariance(self) -> Float64[np.ndarray, "d d"]:
        return self.gram / self.count - np.outer(self.mean, self.mean)


def leace(
    weight: Float[Array | np.ndarray, "e d_in"], forget: RowMoments, preserve: RowMoments
) -> LoraPair:
    """The eraser of what tells forget from preserve, as the change of a Linear; for alpha = rank.

    Of the shape of a [1, D_in], b [E, 1] and bias [E], float32. `a` reads from a row how much of
    the difference is in it, and the rest takes that away:

        y' − y = −δ vᵀW (x − m)        a = vᵀW    b = −δ    bias = δ vᵀW m

    m is the mean of all rows; the Linear's own bias cancels out of it.

    Args:
        weight: W of the Linear.
        forget, preserve: of the rows at its input.

    Raises:
        UserError: a side has no rows, or their mean outputs are the same.
    """
    for side, moments in {"forget": forget, "preserve": preserve}.items():
        if not moments.count:
            raise UserError(f"leace: there are no rows to {side}; give some of both sides")
    w, rows = np.asarray(weight, np.float64), forget.joined(preserve)
    difference = w @ (forget.mean - preserve.mean)
    covariance = w @ rows.covariance() @ w.T
    power = np.trace(covariance) + np.sum((w @ rows.mean) ** 2)
    if np.sum(difference**2) <= RESOLUTION**2 * power:
        fault = "forget and preserve have the same mean, and no linear probe tells them apart"
        raise UserError(f"leace: {fault}; give images that differ")
    a = reader(covariance, difference, rows.count) @ w
    parts = a[None], -difference[:, None], difference * (a @ rows.mean)
    return LoraPair(*(part.astype(np.float32) for part in parts))


def reader(
    covariance: Float64[np.ndarray, "e e"], difference: Float64[np.ndarray, " e"], count: int
) -> Float64[np.ndarray, " e"]:
    """v, from the covariance of `count` rows, before it is shrunk, and δ."""
    solved = np.linalg.solve(shrunk(covariance, count), difference)
    return solved / (difference @ solved)


def shrunk(covariance: Float64[np.ndarray, "e e"], count: int) -> Float64[np.ndarray, "e e"]:
    """A covariance drawn towards the multiple of the identity that has the same trace.

    The share that comes from the identity is the best one for the Frobenius norm where rows and
    outputs are many (Bodnar, Gupta, Parolya 2014, "On the strong convergence of the optimal linear
    shrinkage estimator for large dimensional covariance matrix", arXiv:1308.2608):

        share = (tr Σ)² / (n ‖Σ − (tr Σ / E) I‖²), at most 1
    """
    identity = np.eye(len(covariance))
    trace = np.trace(covariance)
    level = trace / len(covariance)
    spread = count * np.sum((covariance - level * identity) ** 2)
    share = 1.0 if spread <= trace**2 else trace**2 / spread
    return (1 - share) * covariance + share * level * identity


@dataclass(frozen=True)
class Erasable:
    """A projector's last Linear in torch's layout, the statistics of both sides and their target.

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
    """The adapter that leaves a linear probe nothing to read from any of the projectors.

    Args:
        paths: by the names of their Linears.
        weights: of the loss, whose terms the history has: row 0 is no
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


def moments(parts: Sequence[Statistics]) -> RowMoments:
    """Of all rows of one side."""
    return reduce(RowMoments.joined, (RowMoments(s.count, s.mean, s.full_gram()) for s in parts))


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
