"""VisionConfig: the tower's shape, and the names of its adaptable Linears."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax

from jax_unlearn.models.attention import Kernel, best_kernel

LINEARS = ("linear_fc1", "linear_fc2")
# Floating-point operations that are worth a program less: 0.1 s of two cores, because JAX's cache
# may have the program, and seconds of a GPU.
COMPILING = {"cpu": 1e10}
COMPILING_ON_DEVICE = 1e15


@dataclass(frozen=True)
class VisionConfig:
    """The tower's shape. D is `hidden_size`, E is `out_hidden_size`.

    single_linear: each Merger is a single Linear on the merged patches, called `linear_fc2`.
    attention: the attention kernel; None takes the fastest of the backend.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_indexes: tuple[int, ...]
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    rope_theta: float = 10_000.0
    dtype: str = "float32"
    single_linear: bool = False
    attention: Kernel | None = None

    @property
    def kernel(self) -> Kernel:
        return self.attention or best_kernel(jax.default_backend())

    @property
    def padding_for_shape(self) -> int:
        """Number of patches that take about as long to compute as a program takes to compile.

        Up to so much padding, frames of another length join a shape that is compiled anyway.
        """
        work = COMPILING.get(jax.default_backend(), COMPILING_ON_DEVICE)
        d, mlp = self.hidden_size, self.intermediate_size
        return int(work // (2 * self.depth * (4 * d * d + 2 * d * mlp)))

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of a merged vector: D_in of every Linear of a Merger."""
        return self.hidden_size * self.spatial_merge_size**2

    @property
    def table_side(self) -> int:
        return int(self.num_position_embeddings**0.5)

    @property
    def mergers(self) -> tuple[str, ...]:
        """Names of the projectors: the main Merger, then the DeepStack mergers."""
        deepstack = (f"deepstack_merger_list.{i}" for i in range(len(self.deepstack_indexes)))
        return ("merger", *deepstack)

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the Linears that an adapter may change."""
        names = LINEARS[1:] if self.single_linear else LINEARS
        return tuple(f"{merger}.{name}" for merger in self.mergers for name in names)

    @property
    def deepstack_by_layer(self) -> tuple[str, ...]:
        """The DeepStack mergers, sorted by the layer they read."""
        by_layer = sorted(zip(self.deepstack_indexes, self.mergers[1:], strict=True))
        return tuple(name for _, name in by_layer)


def check_linears(names: Iterable[str], config: VisionConfig) -> None:
    """Raise ValueError for an unknown name, whose change would otherwise be ignored silently."""
    if unknown := sorted(set(names) - set(config.linears)):
        known = sorted(config.linears)
        raise ValueError(f"the tower has no Linear {', '.join(unknown)}; it has {known}")
