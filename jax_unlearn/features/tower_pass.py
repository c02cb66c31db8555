"""The program of a pass: one batch for each device through the frozen tower, to the taps."""

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
    """How each leaf of the tower is divided over `fsdp` devices: the blocks' alone are.

    Of a leaf [depth, a, …] of the blocks, which holds all layers, the first axis after depth that
    they can share is; where there is none, it is whole on every device.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        if fsdp > 1 and path[0].key == BLOCKS:
            for axis, size in enumerate(leaf.shape[1:], 1):
                if size % fsdp == 0:
                    return PartitionSpec(*[None] * axis, FSDP)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, state)


def place_tower(state: nnx.State, mesh: Mesh) -> nnx.State:
    """The tower's arrays on the devices of the mesh, as `tap_rows` wants them."""
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(state, mesh.shape[FSDP]))
    return jax.device_put(state, places)


@partial(jax.jit, static_argnames=("images", "mesh"))
def image_means(
    taps: dict[str, Float[Array, "n d_in"]], owner: Int[Array, " n"], *, images: int, mesh: Mesh
) -> dict[str, Float[Array, "m d_in"]]:
    """The mean of each image's tokens, where the tokens are.

    Args:
        taps: as `tap_rows` gives them.
        owner: which of its device's images a token is of, from 0; -1 of none.
        images: of each device; so many rows it gives, zeros for those that have no token.
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
    """The wanted taps of a batch for each device; XLA drops what only the other features need.

    packed: the devices' batches one after another. No device needs anything of another's, so
    nothing is communicated, but for the blocks' weights where the mesh has them in parts: each
    layer's are gathered when its turn comes, so that one layer at a time is whole.
    """
    parts = specs(state, mesh.shape[FSDP])

    def whole_layer(layer: nnx.State) -> nnx.State:
        def whole(x: Array, spec: PartitionSpec) -> Array:
            # Without the depth axis; what is divided is the last that the spec names.
            return jax.lax.all_gather(x, FSDP, axis=len(spec) - 2, tiled=True) if spec else x

        return jax.tree.map(whole, layer, parts[BLOCKS])

    def of_device(state: nnx.State, packed: PackedPatches) -> dict[str, Array]:
        taps = nnx.merge(graphdef, state).features(packed, None, whole_layer).taps
        flat = {name: taps[name].reshape(-1, taps[name].shape[-1]) for name in names}
        return {name: rows.astype("float32") for name, rows in flat.items()}

    rows = PartitionSpec(AXES)
    # Pallas kernels do not say how their outputs vary over the mesh.
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(parts, rows), out_specs=rows, check_vma=False
    )
    return mapped(state, packed)
