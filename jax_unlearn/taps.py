"""The program of a pass: one batch for each device through the frozen tower, to the taps."""

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from jax_unlearn.data.packing import PackedPatches
from jax_unlearn.mesh import DATA
from jax_unlearn.models.jit import tower_jit
from jax_unlearn.models.qwen3_vision import Qwen3VisionTower


@tower_jit(0, 3, 4)
def tap_rows(
    graphdef: nnx.GraphDef[Qwen3VisionTower],
    state: nnx.State,
    packed: PackedPatches,
    names: tuple[str, ...],
    mesh: Mesh,
) -> dict[str, Float[Array, "n d_in"]]:
    """The wanted taps of a batch for each device; XLA drops what only the other features need.

    packed: the devices' batches one after another. No device needs anything of another's, so
    nothing is communicated.
    """

    def of_device(state: nnx.State, packed: PackedPatches) -> dict[str, Array]:
        taps = nnx.merge(graphdef, state).features(packed, None).taps
        flat = {name: taps[name].reshape(-1, taps[name].shape[-1]) for name in names}
        return {name: rows.astype("float32") for name, rows in flat.items()}

    data, whole = PartitionSpec(DATA), PartitionSpec()
    # Pallas kernels do not say how their outputs vary over the mesh.
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(whole, data), out_specs=data, check_vma=False
    )
    return mapped(state, packed)
