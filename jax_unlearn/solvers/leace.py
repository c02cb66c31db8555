"""LEACE: the smallest change of a Linear's outputs after which no linear probe can classify them.

A linear probe can separate forget and preserve if and only if their means differ. With the outputs
y, their mean μ and covariance Σ over all rows, and δ the forget mean minus the preserve mean, the
affine change that makes the means equal and changes the outputs least is (Belrose et al. 2023,
"LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819, here for two classes)

    y' = y − δ vᵀ(y − μ)        v = Σ⁻¹δ / (δᵀΣ⁻¹δ)

The means become equal for every Σ, because vᵀδ = 1; an error in Σ only makes the change larger. The
inverse of a covariance estimated from hardly more rows than outputs makes it much larger, and from
fewer rows the inverse does not exist; so Σ is shrunk, as in the authors' package concept-erasure.

For the projectors of a run, `erase` returns the change as an adapter. LEACE also changes the bias,
which the loss has no term for. With a column of ones appended to the rows, a change of the bias
becomes one of the weight: Δ' = [B  c] [[A, 0], [0, 1]] on [X 1].
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from jax_unlearn.features.gram import factor
from jax_unlearn.features.statistics import Statistics, merge
from jax_unlearn.models.arrays import on_device
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem, linear_part, residual_of
from jax_unlearn.objective.loss import LossWeights, loss_alone
from jax_unlearn.objective.targets import Target
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.result import Result, history_of

# Means closer than the resolution of the float32 features count as equal.
RESOLUTION = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class RowMoments:
    """Number of rows X, their mean, and the uncentred XᵀX; float64."""

    count: int
    mean: Float64[np.ndarray, " d"]
    gram: Float64[np.ndarray, "d d"]

    def merged(self, other: "RowMoments") -> "RowMoments":
        """The moments of the rows of both."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        return RowMoments(count, mean, self.gram + other.gram)

    def covariance(self) -> Float64[np.ndarray, "d d"]:
        return self.gram / self.count - np.outer(self.mean, self.mean)


def leace(
    weight: Float[Array | np.ndarray, "e d_in"], forget: RowMoments, preserve: RowMoments
) -> LoraPair:
    """LEACE between the forget and preserve outputs of a Linear, as a LoRA pair for alpha = rank.

        y' − y = −δ vᵀW (x − m)        a = vᵀW    b = −δ    bias = δ vᵀW m

    where m is the mean of all rows; the Linear's own bias cancels.

    Args:
        weight: W [E, D_in] of the Linear.
        forget: moments of the forget rows at its input.
        preserve: moments of the preserve rows.

    Returns:
        A pair with a [1, D_in], b [E, 1] and bias [E], float32.

    Raises:
        UserError: a side has no rows, or both have the same mean output.
    """
    for side, moments in {"forget": forget, "preserve": preserve}.items():
        if not moments.count:
            raise UserError(f"leace: there are no rows to {side}; give some of both sides")
    w, rows = np.asarray(weight, np.float64), forget.merged(preserve)
    difference = w @ (forget.mean - preserve.mean)
    covariance = w @ rows.covariance() @ w.T
    power = np.trace(covariance) + np.sum((w @ rows.mean) ** 2)
    if np.sum(difference**2) <= RESOLUTION**2 * power:
        fault = "forget and preserve have the same mean, so a linear probe cannot separate them"
        raise UserError(f"leace: {fault}; give images that differ")
    a = reader(covariance, difference, rows.count) @ w
    parts = a[None], -difference[:, None], difference * (a @ rows.mean)
    return LoraPair(*(part.astype(np.float32) for part in parts))


def reader(
    covariance: Float64[np.ndarray, "e e"], difference: Float64[np.ndarray, " e"], count: int
) -> Float64[np.ndarray, " e"]:
    """v, from the covariance of `count` rows (before shrinkage) and δ."""
    solved = np.linalg.solve(shrunk(covariance, count), difference)
    return solved / (difference @ solved)


def shrunk(covariance: Float64[np.ndarray, "e e"], count: int) -> Float64[np.ndarray, "e e"]:
    """Shrink a covariance towards the multiple of the identity with the same trace.

    The weight of the identity is asymptotically optimal in Frobenius norm for many rows and outputs
    (Bodnar, Gupta, Parolya 2014, "On the strong convergence of the optimal linear shrinkage
    estimator for large dimensional covariance matrix", arXiv:1308.2608):

        share = (tr Σ)² / (n ‖Σ − (tr Σ / E) I‖²), at most 1
    """
    trace = np.trace(covariance)
    distance = count * np.sum((covariance - towards_identity(covariance, 1.0)) ** 2)
    share = 1.0 if distance <= trace**2 else trace**2 / distance
    return towards_identity(covariance, share)


def towards_identity(
    covariance: Float64[np.ndarray, "e e"], share: float
) -> Float64[np.ndarray, "e e"]:
    """The mean of a covariance and the multiple of the identity with its trace, of that share."""
    level = np.trace(covariance) / len(covariance)
    return (1 - share) * covariance + share * level * np.eye(len(covariance))


@dataclass(frozen=True)
class Erasable:
    """A projector's last Linear in torch's layout, with the statistics of forget and preserve rows.

    The target is needed for the loss only; LEACE depends on the means.
    """

    weight: Float[np.ndarray, "e d_in"]
    bias: Float[np.ndarray, " e"]
    forget: Sequence[Statistics]
    preserve: Sequence[Statistics]
    target: Target

    def pair(self) -> LoraPair:
        """The change of LEACE, of rank 1."""
        return leace(self.weight, moments(self.forget), moments(self.preserve))

    def linear(self) -> LinearProblem:
        """The problem for other optimisers: without the bias, on the images to fit."""
        return linear_part(self.weight, self.bias, self.forget[0], self.target, self.preserve[0])

    def affine(self) -> LinearProblem:
        """The problem on rows with an appended column of ones."""
        forget, preserve = reduce(merge, self.forget), reduce(merge, self.preserve)
        rows = forget.equivalent_rows()
        x_f = np.column_stack([rows.x, rows.ones]).astype(np.float32)
        residual = residual_of(rows, self.target, self.weight, self.bias).astype(np.float32)
        x_p = factor(preserve.gram_with_ones(), preserve.noise).astype(np.float32)
        counts = float(forget.count), float(preserve.count)
        return LinearProblem(on_device(x_f), on_device(residual), on_device(x_p), *counts)


def erase(projectors: Mapping[str, Erasable], weights: LossWeights) -> Result:
    """Apply LEACE to several projectors.

    Args:
        projectors: the projectors, by the names of their last Linears.
        weights: weights of the loss, for the history.

    Returns:
        The adapter. Row 0 of its history is no change, row 1 the adapter; the weight term is the
        norm of B A including the change of the bias.

    Raises:
        UserError: a side has no rows, or both sides have the same mean.
    """
    begun = time.perf_counter()
    pairs = {name: one.pair() for name, one in projectors.items()}
    problem = {name: one.affine() for name, one in projectors.items()}
    whole = {name: with_ones(pair) for name, pair in pairs.items()}
    no_change = {name: LoraPair(pair.a, np.zeros_like(pair.b)) for name, pair in whole.items()}
    terms = [
        np.asarray(loss_alone(LoraAdapter(change, alpha=2.0, rank=2), problem, weights)[1])
        for change in (no_change, whole)
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
    """The moments of all rows of one side."""
    return reduce(RowMoments.merged, (RowMoments(s.count, s.mean, s.full_gram()) for s in parts))


def with_ones(pair: LoraPair) -> LoraPair:
    """The change of weight and bias, as a pair of rank 2 on rows with a column of ones."""
    assert pair.bias is not None
    one = np.zeros((1, pair.a.shape[1] + 1), np.float32)
    one[0, -1] = 1
    a = np.concatenate([np.pad(np.asarray(pair.a), ((0, 0), (0, 1))), one])
    return LoraPair(a, np.column_stack([pair.b, pair.bias]))
