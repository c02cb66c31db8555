"""jit for a tower, with the compiler's options that its backend needs."""

import warnings
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

import jax

OPTIONS: dict[str, dict[str, str]] = {
    # YNNPACK, left on for convolutions alone, of which a tower has none. It would take a LayerNorm
    # into the product that follows and compute it again for every tile, and it runs attention's
    # small products on one core: together twice the time of a block with jax 0.10.2.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"},
}


class TowerJit:
    """`jax.jit(function, static_argnums=…)` whose options are chosen at the first call.

    Not before: asking for the backend starts it, and that must wait for the program's own setting
    of platform and distribution. To be used outermost, for jit takes options nowhere else.
    """

    def __init__(self, function: Callable[..., Any], static_argnums: tuple[int, ...]) -> None:
        self.function, self.static_argnums = function, static_argnums
        self.on = cache(self._on)
        update_wrapper(self, function)

    def _on(self, backend: str) -> Any:
        options = known(OPTIONS.get(backend))
        return jax.jit(self.function, static_argnums=self.static_argnums, compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        return self.on(jax.default_backend())(*args)

    def compilations(self) -> int:
        """How many programs were compiled so far."""
        count: int = self.on(jax.default_backend())._cache_size()
        return count


def known(options: dict[str, str] | None) -> dict[str, str] | None:
    """The options if the compiler has them, or None: they change from one version to the next.

    They save time and change no result but its rounding.
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
    """Decorator: see `TowerJit`."""
    return lambda function: TowerJit(function, static_argnums)
