"""The compiled programs of a pass: the frozen tower on one batch per device, up to the taps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jax_unlearn.models.qwen3_vision.packing import PackedPatches
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.models.tower_jit import tower_jit
from jax_unlearn.runtime.mesh import AXES, FSDP

BLOCKS = "blocks"


def specs(state: nnx.State, fsdp: int) -> nnx.State:
    """Partition specs of the tower's leaves over `fsdp` devices; only the blocks are sharded.

    A leaf [depth, a, …] of the blocks holds all layers. It is sharded on the first axis after
    depth that `fsdp` divides, or replicated if there is none.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        if fsdp > 1 and path[0].key == BLOCKS:
            for axis, size in enumerate(leaf.shape[1:], 1):
                if size % fsdp == 0:
                    return PartitionSpec(*[None] * axis, FSDP)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, state)


def place_tower(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Put the tower's arrays on the devices of the mesh, sharded as `tap_rows` expects."""
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(state, mesh.shape[FSDP]))
    return jax.device_put(state, places)


@partial(jax.jit, static_argnames=("images", "mesh"))
def image_means(
    taps: dict[str, Float[Array, "n d_in"]], owner: Int[Array, " n"], *, images: int, mesh: Mesh
) -> dict[str, Float[Array, "m d_in"]]:
    """The mean of each image's tokens, computed on the device that holds them.

    Args:
        taps: tokens at each tap, from `tap_rows`.
        owner: index of each token's image within its device's batch; -1 for padding.
        images: number of rows to return per device; images without tokens are zeros.
    """

    def of_device(taps: dict[str, Array], owner: Array) -> dict[str, Array]:
        belongs = jax.nn.one_hot(owner, images, axis=0)
        share = belongs / jnp.maximum(belongs.sum(axis=1, keepdims=True), 1)
        return {name: jnp.matmul(share, x, precision="highest") for name, x in taps.items()}

    rows = PartitionSpec(AXES)
    return jax.shard_map(of_device, mesh=mesh, in_specs=rows, out_specs=rows)(taps, owner)


@tower_jit(0, 3, 4)
def tap_rows(
    graphdef: nnx.GraphDef[Qwen3VisionTower],
    state: nnx.State,
    packed: PackedPatches,
    names: tuple[str, ...],
    mesh: Mesh,
) -> dict[str, Float[Array, "n d_in"]]:
    """The named taps of one batch per device; XLA drops computations that only others need.

    Devices do not communicate, except for sharded block weights: those of a layer are all-gathered
    right before it runs, so that only one layer at a time is whole.

    Args:
        packed: the devices' batches, concatenated.
        names: the taps to return.

    Returns:
        Rows at each tap in float32, the devices' batches concatenated.
    """
    parts = specs(state, mesh.shape[FSDP])

    def whole_layer(layer: nnx.State) -> nnx.State:
        def whole(x: Array, spec: PartitionSpec) -> Array:
            # The sharded axis is the last one in the spec; the depth axis is gone inside the scan.
            return jax.lax.all_gather(x, FSDP, axis=len(spec) - 2, tiled=True) if spec else x

        return jax.tree.map(whole, layer, parts[BLOCKS])

    def of_device(state: nnx.State, packed: PackedPatches) -> dict[str, Array]:
        taps = nnx.merge(graphdef, state).features(packed, None, whole_layer).taps
        flat = {name: taps[name].reshape(-1, taps[name].shape[-1]) for name in names}
        return {name: rows.astype("float32") for name, rows in flat.items()}

    rows = PartitionSpec(AXES)
    # check_vma is off because Pallas kernels do not declare how their outputs vary over the mesh.
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(parts, rows), out_specs=rows, check_vma=False
    )
    return mapped(state, packed)
