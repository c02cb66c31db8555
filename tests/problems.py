"""Small training problems with every part drawn at random."""

import jax
import numpy as np

from jax_unlearn.models.lora import LoraPair
from jax_unlearn.objective.linear import LinearProblem, linear_problem
from jax_unlearn.objective.loss import loss
from jax_unlearn.solvers.config import SolverConfig

D_IN, E, RANK = 16, 8, 3
# One program of each shape, as in training, in place of dozens of operations that compile alone.
value_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


def published(**settings):
    """The published weights and form of the loss, whatever our own defaults become."""
    return SolverConfig(**{"lambda_preserve": 0.4, "reduction": "sum"} | settings)


def arrays(
    n_forget: int = 30,
    n_preserve: int = 50,
    seed: int = 0,
    common: float = 0.0,
    features_rank: int = D_IN,
) -> tuple[np.ndarray, ...]:
    """(weight, bias, forget, target, preserve)."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(features_rank, D_IN))
    weight, bias = random.normal(size=(E, D_IN)), random.normal(size=E)
    forget, preserve = (
        random.normal(size=(n, features_rank)) @ mixing + common for n in (n_forget, n_preserve)
    )
    target = forget @ weight.T + bias + random.normal(size=(n_forget, E))
    if common:
        # Far from the origin; the target must not follow, or float32 has nothing left to compare.
        weight, target = weight / common, random.normal(size=(n_forget, E))
    return tuple(x.astype(np.float32) for x in (weight, bias, forget, target, preserve))


def pair(b_scale: float, seed: int = 7) -> LoraPair:
    random = np.random.default_rng(seed)
    a = random.normal(size=(RANK, D_IN)).astype(np.float32) / 10
    return LoraPair(a=a, b=(b_scale / 10 * random.normal(size=(E, RANK))).astype(np.float32))


def problem(**options: float) -> dict[str, LinearProblem]:
    return {"merger.linear_fc2": linear_problem(*arrays(**options))}


def same_heads(one, other):
    """What is kept of each image, in whatever order and however much was folded."""

    def of(statistics):
        rows = (
            statistics.rows if statistics.gram is not None else statistics.rows.two_rows_per_image()
        )
        order = np.lexsort((rows.ones == 0, rows.image))
        return [getattr(rows, name)[order] for name in ("x", "image", "ones", "norms")]

    for a, b in zip(of(one), of(other), strict=True):
        # Rows hold numbers that are a thousandth of others, and float32 rounds by the largest.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max(initial=0)))
