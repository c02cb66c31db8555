"""Convert the arrays that a caller gives, or say which one has another shape or type."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped


def float_array(
    name: str,
    value: Any,
    axes: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    *,
    or_number: bool = False,
) -> Float[Array, "..."]:
    """An argument as a float32 array of JAX.

    Args:
        name: name of the argument, for the message.
        value: an array of JAX, NumPy or PyTorch, possibly traced, or a list.
        axes: names of the axes that it must have.
        sizes: sizes of axes that are known.
        or_number: take a single number too.

    Raises:
        ValueError: it is not an array of numbers, or has other axes.
    """
    array = any_array(name, value, axes, sizes or {}, or_number)
    if isinstance(array, jax.Array):
        return array.astype(jnp.float32)
    # A copy, since the caller may change theirs.
    return on_device(np.array(array, np.float32))


def on_device(array: Shaped[np.ndarray, "..."]) -> Shaped[Array, "..."]:
    """An array of NumPy as one of JAX of its dtype, possibly in the same memory.

    `jnp.asarray` compiles a program for each shape (jax 0.10.2).
    """
    return jax.device_put(array)


def any_array(
    name: str,
    value: Any,
    axes: Sequence[str],
    known: Mapping[str, int] = MappingProxyType({}),
    or_number: bool = False,
) -> Shaped[Array | np.ndarray, "..."]:
    """An argument as an array of its own dtype; see `float_array`.

    Raises:
        ValueError: it is not an array of numbers, or has other axes.
    """
    array = value if isinstance(value, jax.Array) else numbers(name, value)
    same = array.ndim == len(axes) and all(
        known.get(axis, size) == size for axis, size in zip(axes, array.shape, strict=True)
    )
    if not same and not (or_number and array.ndim == 0):
        wanted = ", ".join(f"{axis} = {known[axis]}" if axis in known else axis for axis in axes)
        raise ValueError(f"{name} has shape {list(array.shape)}, expected [{wanted}]")
    return array


def index_array(name: str, value: Any, count: int) -> Int[np.ndarray, " n"]:
    """An argument as a NumPy array of `count` indices that ascend from 0 without gaps.

    Raises:
        ValueError: it is none.
    """
    array = numbers(name, value)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {list(array.shape)}, expected [{count}]")
    if array.dtype.kind not in "iu" or not np.isin(np.diff(array, prepend=-1), (0, 1)).all():
        raise ValueError(f"{name} must be whole numbers that ascend from 0 without gaps")
    if count and array[0]:
        raise ValueError(f"{name} must begin with 0")
    return array.astype(np.int32)


def numbers(name: str, value: Any) -> np.ndarray:
    """A value of NumPy, PyTorch or lists as an array of numbers.

    Raises:
        ValueError: it is none.
    """
    if hasattr(value, "detach"):
        # A PyTorch tensor, possibly in bfloat16, which NumPy does not have, or on a GPU.
        value = value.detach().cpu().float() if value.is_floating_point() else value.cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error})") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} is not an array of numbers, but of {array.dtype}")
    return array
