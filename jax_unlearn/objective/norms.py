"""Frobenius norms with safe gradients, and matrix products in a fast order."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jax_unlearn.models.lora import LoraPair


def safe_norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm whose gradient at zero is zero, as in PyTorch; jnp's is NaN there."""
    return safe_sqrt(jnp.sum(x * x))


def safe_sqrt(square: Float[Array, ""]) -> Float[Array, ""]:
    # A sum of Gram entries may round to less than zero; NaN must stay NaN.
    zero = square <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


# The derivatives of these two are written by hand to choose the order of the operands: those of JAX
# leave a wide matrix transposed in a thin product, which takes five times as long on a CPU.
@jax.custom_vjp
def narrow(x: Float[Array, "n d_in"], a: Float[Array, "r d_in"]) -> Float[Array, "n r"]:
    """X Aᵀ."""
    return jnp.matmul(x, a.T, precision="highest")


def _narrow_forward(x: Array, a: Array) -> tuple[Array, tuple[Array, Array]]:
    return narrow(x, a), (x, a)


def _narrow_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, a = saved
    # Where x is a constant, as in training, the compiler drops its derivative.
    by_x = jnp.matmul(gradient, a, precision="highest")
    return by_x, jnp.matmul(gradient.T, x, precision="highest")


narrow.defvjp(_narrow_forward, _narrow_backward)


@jax.custom_vjp
def missed_norm(
    h: Float[Array, "n r"], b: Float[Array, "e r"], residual: Float[Array, "n e"]
) -> Float[Array, ""]:
    """‖R − H Bᵀ‖; the gradient at zero is zero."""
    return _missed_forward(h, b, residual)[0]


def _missed_forward(h: Array, b: Array, residual: Array) -> tuple[Array, tuple[Array, ...]]:
    missed = residual - jnp.matmul(h, b.T, precision="highest")
    norm = safe_norm(missed)
    return norm, (h, b, missed, norm)


def _missed_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    h, b, missed, norm = saved
    share = jnp.where(norm > 0, -gradient / jnp.where(norm > 0, norm, 1.0), 0.0)
    by_h = jnp.matmul(missed, b, precision="highest")
    # Without the barrier XLA would fuse the transpose into the product.
    by_b = jax.lax.optimization_barrier(jnp.matmul(h.T, missed, precision="highest"))
    return share * by_h, share * by_b.T, -share * missed


missed_norm.defvjp(_missed_forward, _missed_backward)


def product_norm(pair: LoraPair) -> Float[Array, ""]:
    """‖B A‖ from r × r Gram matrices, ‖B A‖² = ⟨BᵀB, A Aᵀ⟩, without forming B A [E, D_in]."""
    return safe_sqrt(jnp.sum((pair.b.T @ pair.b) * (pair.a @ pair.a.T)))
