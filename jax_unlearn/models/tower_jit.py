"""jit for a tower, with compiler options for its backend."""

import warnings
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp

OPTIONS: dict[str, dict[str, str]] = {
    # Restricts YNNPACK to convolutions, of which a tower has none. It would fuse a LayerNorm into
    # the product that follows and recompute it for every tile, and it runs attention's small
    # products on one core; with jax 0.10.2 a block then takes twice the time.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"},
}


class TowerJit:
    """`jax.jit(function, static_argnums=…)` with compiler options chosen at the first call.

    They cannot be chosen earlier: asking for the backend starts it, and the program must set the
    platform and connect its processes before that. JAX accepts compiler options only for the
    outermost jit, so inside another transformation (`jax.jit`, `nnx.jit`, `jax.grad`) there are
    none.
    """

    def __init__(self, function: Callable[..., Any], static_argnums: tuple[int, ...]) -> None:
        self.function, self.static_argnums = function, static_argnums
        self.on = cache(self._on)
        self.inside = jax.jit(function, static_argnums=static_argnums)
        update_wrapper(self, function)

    def _on(self, backend: str) -> Any:
        options = supported(OPTIONS.get(backend))
        return jax.jit(self.function, static_argnums=self.static_argnums, compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        if is_traced(*args):
            return self.inside(*args)
        return self.on(jax.default_backend())(*args)

    def compilations(self) -> int:
        """Number of programs compiled so far."""
        count: int = self.on(jax.default_backend())._cache_size()
        return count


def is_traced(*args: Any) -> bool:
    """Whether this is called inside a transformation of JAX."""
    # An array that is made inside `jax.jit` is traced too, also where no argument is.
    leaves = (jnp.zeros(()), *jax.tree.leaves(args))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def supported(options: dict[str, str] | None) -> dict[str, str] | None:
    """The options, or None if this version of the compiler does not have them.

    They save time, and do not change results except for rounding.
    """
    if options is None:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError as error:
        warnings.warn(
            f"this jaxlib has no option {', '.join(options)} ({str(error).splitlines()[0]}); "
            "the tower may take twice as long",
            stacklevel=2,
        )
        return None
    return options


def tower_jit(*static_argnums: int) -> Callable[[Callable[..., Any]], TowerJit]:
    """Decorator that makes a function a `TowerJit`."""
    return lambda function: TowerJit(function, static_argnums)
