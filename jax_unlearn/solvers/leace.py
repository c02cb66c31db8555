"""LEACE: the least change of a Linear's outputs that leaves no linear probe anything to read.

A linear probe can tell two sides apart if and only if their means differ. With the outputs y, their
mean μ and covariance Σ over all rows, and δ the forget side's mean minus the preserve side's, the
affine change that makes the means equal and moves the outputs least is (Belrose et al. 2023,
"LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819, here for two classes)

    y' = y − δ vᵀ(y − μ)        v = Σ⁻¹δ / (δᵀΣ⁻¹δ)

The means become equal whatever Σ is, for vᵀδ = 1: an error in Σ costs nothing but more movement.
The inverse of a covariance that was taken from hardly more rows than outputs costs much of it, and
the one from fewer does not exist; so Σ is shrunk, as the authors' package concept-erasure does.
"""

from dataclasses import dataclass

import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from jax_unlearn.models.lora import LoraPair
from jax_unlearn.runtime.errors import UserError

# SampleFeatures are float32: means that are closer than it resolves are the same.
RESOLUTION = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Moments:
    """How many rows X there are, their mean, and XᵀX, which is not centred; float64."""

    count: int
    mean: Float64[np.ndarray, " d"]
    gram: Float64[np.ndarray, "d d"]

    def joined(self, other: "Moments") -> "Moments":
        """Those of the rows of both."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        return Moments(count, mean, self.gram + other.gram)

    def covariance(self) -> Float64[np.ndarray, "d d"]:
        return self.gram / self.count - np.outer(self.mean, self.mean)


def leace(
    weight: Float[Array | np.ndarray, "e d_in"], forget: Moments, preserve: Moments
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
