"""LinearProblem: the loss of one adapted Linear, on its rows or on their statistics."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from jax_unlearn.features.gram import factor, gram
from jax_unlearn.features.statistics import Rows, Statistics
from jax_unlearn.models.arrays import float_array, on_device
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.loss import LossWeights, Problem, ProjectorProblem, three_terms
from jax_unlearn.objective.norms import missed_norm, narrow, product_norm
from jax_unlearn.objective.targets import Target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearProblem:
    """The forget and preserve rows of one adapted Linear, float32.

    Attributes:
        forget: X_f [n_f, D_in].
        residual: R = T − X_f Wᵀ − b [n_f, E].
        preserve: X_p [n_p, D_in].
        forget_rows: number of forget rows before `compress`, for the mean reduction.
        preserve_rows: number of preserve rows before `compress`, or 1.
    """

    forget: Float[Array | np.ndarray, "n_f d_in"]
    residual: Float[Array | np.ndarray, "n_f e"]
    preserve: Float[Array | np.ndarray, "n_p d_in"]
    forget_rows: float | Float[Array, ""]
    preserve_rows: float | Float[Array, ""]

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D_in)."""
        return self.residual.shape[1], self.forget.shape[1]

    @property
    def rows(self) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
        """Number of forget and of preserve rows by which the mean reduction divides."""
        return self.forget_rows, self.preserve_rows

    def shapes(self, name: str) -> dict[str, tuple[int, int]]:
        """(E, D_in) of the Linear, by its full name."""
        return {name: self.shape}

    def terms(
        self, name: str, adapter: LoraAdapter, weights: LossWeights
    ) -> Float[Array, " terms"]:
        """The weighted terms, in the order of TERMS."""
        pair = jax.tree.map(jnp.asarray, adapter.pairs[name])
        forget, preserve = (
            adapter.scale * narrow(jnp.asarray(x), pair.a) for x in (self.forget, self.preserve)
        )
        missed = missed_norm(forget, pair.b, jnp.asarray(self.residual))
        moved = product_norm(LoraPair(preserve.T, pair.b))
        return three_terms(missed, moved, [pair], self.rows, weights)


def linear_problem(
    weight: Any,
    bias: Any,
    forget: Any,
    target: Any,
    preserve: Any,
) -> LinearProblem:
    """A problem from a Linear's weight and bias in torch's layout, its rows, and the target T.

    Arrays may be of JAX, NumPy or PyTorch, or lists; they are converted to float32.

    Args:
        weight: W [E, D_in].
        bias: b [E], a number, or None for a Linear without one.
        forget: X_f [n_f, D_in].
        target: T [n_f, E], the outputs that the forget rows should have.
        preserve: X_p [n_p, D_in].

    Raises:
        ValueError: an array has another shape; names the argument.
    """
    w = float_array("weight", weight, ("E", "D_in"))
    sizes = {"E": w.shape[0], "D_in": w.shape[1]}
    x_f = float_array("forget", forget, ("n_f", "D_in"), sizes)
    t = float_array("target", target, ("n_f", "E"), sizes | {"n_f": len(x_f)})
    x_p = float_array("preserve", preserve, ("n_p", "D_in"), sizes)
    b = float_array("bias", 0.0 if bias is None else bias, ("E",), sizes, or_number=True)
    with jax.default_matmul_precision("highest"):
        residual = t - (x_f @ w.T + b)
    return LinearProblem(x_f, residual, x_p, float(len(x_f)), float(max(1, len(x_p))))


def linear_part(
    weight: Float[np.ndarray, "e d_in"],
    bias: Float[np.ndarray, " e"],
    forget: Statistics,
    target: Target,
    preserve: Statistics,
) -> LinearProblem:
    """A problem from a Linear's weight and bias in torch's layout and the statistics of its rows.

    It has as few rows as give the same loss. The statistics suffice for every kind of target, since
    a target is defined per image.
    """
    rows = forget.equivalent_rows()
    arrays = (rows.x, residual_of(rows, target, weight, bias), preserve.equivalent_rows().x)
    x_f, r, x_p = (on_device(array.astype(np.float32)) for array in arrays)
    counts = float(forget.count), float(max(1, preserve.count))
    return _compress(LinearProblem(x_f, r, x_p, *counts))


def residual_of(
    rows: Rows,
    target: Target,
    weight: Float[np.ndarray, "e d_in"],
    bias: Float[np.ndarray, " e"],
) -> Float64[np.ndarray, "m e"]:
    """T − X Wᵀ − b of rows, after the orthogonal change of each image's rows (`Rows`)."""
    residual = rows.ones[:, None] * target.constant[rows.image].astype(np.float64)
    if target.scaled is not None:
        residual += rows.norms[:, None] * target.scaled[rows.image]
    if not target.own:
        residual -= rows.x @ weight.T.astype(np.float64) + np.outer(rows.ones, bias)
    return residual


def compress(problem: Problem) -> dict[str, ProjectorProblem]:
    """Reduce each Linear to at most D_in + E forget and D_in preserve rows with the same loss.

    Loss and gradient agree with the original's to float32 rounding; in the gradient of a change
    that misses the target by a share ε, the error is that rounding over ε. The original number of
    rows is kept for the mean reduction. Parts of a Merger keep their rows, since rows cannot be
    combined where a GELU lies between the change and the output.
    """
    return {
        name: _compress(part) if isinstance(part, LinearProblem) else part
        for name, part in problem.items()
    }


def _compress(linear: LinearProblem) -> LinearProblem:
    e, d_in = linear.shape
    if len(linear.forget) > d_in + e:
        both = factor(gram(linear.forget, linear.residual))
        forget, residual = np.split(both.astype(np.float32), [d_in], axis=1)
        linear = replace(linear, forget=on_device(forget), residual=on_device(residual))
    if len(linear.preserve) > d_in:
        preserve = factor(gram(linear.preserve)).astype(np.float32)
        linear = replace(linear, preserve=on_device(preserve))
    return linear


def describe(problem: Problem) -> dict[str, dict[str, str]]:
    """The number of forget and preserve rows of each Linear, before and after `compress`."""

    def form(rows: int, original: float | Float[Array, ""]) -> str:
        before = int(original)
        if rows == before or not rows:
            return f"{rows} rows"
        return f"{before} rows, by {rows} with the same Gram matrix"

    return {
        name: {
            "forget": form(len(part.forget), part.forget_rows),
            "preserve": form(len(part.preserve), part.preserve_rows),
        }
        for name, part in problem.items()
        if isinstance(part, LinearProblem)
    }
