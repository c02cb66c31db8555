"""The Qwen3-VL vision tower: patches → ViT → Mergers, with every feature and tap by name.

The architecture is that of `Qwen3VLVisionModel` in transformers 5.23. The Mergers use the exact
(erf) GELU; the blocks' MLPs use the one named in the config, usually tanh.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jax_unlearn.models.arrays import float_array, numbers
from jax_unlearn.models.layers import matmul_precision, stack
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.models.qwen3_vision.blocks import PatchMerger, VisionBlock, rope_angles
from jax_unlearn.models.qwen3_vision.config import VisionConfig, check_linears
from jax_unlearn.models.qwen3_vision.packing import (
    PackedPatches,
    counted_sizes,
    pack,
    row_count,
    row_length,
    shared_lengths,
)
from jax_unlearn.models.tower_jit import is_traced, tower_jit

# All-gathers the weights of one layer, for devices that hold a shard of them.
Gather = Callable[[nnx.State], nnx.State]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionFeatures:
    """All features of one forward pass. Leading axes are [n], or [rows, length] while packed.

    last_hidden_state: output of the last block, [n_patches, D]. outputs: output of each Merger, by
    its name in `VisionConfig.mergers`, [n_merged, E]. taps: input of each adaptable Linear, by its
    name (`merger.linear_fc2`, …), [n_merged, 4D]. by_layer: the DeepStack mergers in HF's order.
    """

    last_hidden_state: Float[Array, "*patches d"]
    outputs: dict[str, Float[Array, "*merged e"]]
    taps: dict[str, Float[Array, "*merged d_in"]]
    by_layer: tuple[str, ...] = field(metadata={"static": True})

    @property
    def pooler_output(self) -> Float[Array, "*merged e"]:
        """The Merger's output."""
        return self.outputs["merger"]

    @property
    def deepstack_features(self) -> tuple[Float[Array, "*merged e"], ...]:
        """The DeepStack mergers' outputs, shallowest layer first."""
        return tuple(self.outputs[name] for name in self.by_layer)


class Qwen3VisionTower(nnx.Module):
    """The vision tower; `tower(pixel_values, grid_thw)` takes the arrays of HF's image processor.

    The blocks' weights are stacked on a leading layer axis and scanned, so that compile time does
    not grow with depth.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.patch_embed = linear(config.patch_dim, config.hidden_size)
        self.pos_embed = nnx.Embed(
            config.num_position_embeddings,
            config.hidden_size,
            dtype=config.dtype,
            param_dtype=config.dtype,
            rngs=rngs,
        )
        self.blocks = stack(lambda rngs: VisionBlock(config, rngs=rngs), config.depth, rngs)
        self.merger = PatchMerger(config, norm_merged=False, rngs=rngs)
        self.deepstack_merger_list = nnx.List(
            PatchMerger(config, norm_merged=True, rngs=rngs) for _ in config.deepstack_indexes
        )

    def __call__(
        self,
        pixel_values: Any,
        grid_thw: Any,
        adapter: LoraAdapter | None = None,
    ) -> VisionFeatures:
        """Features of several images or videos of any size.

        Args:
            pixel_values: [n_patches, C·tp·p·p], in the layout of HF's image processor; an array of
                JAX, NumPy or PyTorch.
            grid_thw: [n, 3] frames, and height and width in patches; a concrete array, since it
                determines the shapes: under `jax.jit` close over it.
            adapter: low-rank changes of some of the Mergers' Linears.

        Raises:
            ValueError: the grid does not match the patches or is traced, or the adapter names a
                Linear that the tower does not have.
        """
        if isinstance(grid_thw, jax.core.Tracer):
            raise ValueError("grid_thw is traced, and it determines shapes; close over it")
        config = self.config
        check_linears(adapter.pairs if adapter else (), config)
        grid, merge = numbers("grid_thw", grid_thw), config.spatial_merge_size
        if grid.ndim != 2 or grid.shape[1] != 3 or not grid.size or grid.dtype.kind not in "iu":
            raise ValueError(
                f"grid_thw has shape {list(grid.shape)} and dtype {grid.dtype}, expected whole "
                "numbers [n, 3] of at least one image"
            )
        sizes = {"C·tp·p·p": config.patch_dim}
        pixels = float_array("pixel_values", pixel_values, ("n_patches", "C·tp·p·p"), sizes)
        whole = pixels if is_traced(pixels) else np.asarray(pixels)
        graphdef, state = nnx.split(self)
        parts, slots, places = [], [], []
        for length, frames, patches in groups(grid, counted_sizes(grid, whole), config):
            packed, slot = pack(
                whole[patches] if len(patches) < len(whole) else whole,
                frames,
                merge=merge,
                side=config.table_side,
                rows=row_count(len(frames)),
                length=length,
            )
            parts.append(forward(graphdef, state, packed, adapter))
            slots.append(slot)
            places.append(patches)
        return unpack(parts, slots, places, config)

    def linear(self, name: str) -> tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]:
        """(weight, bias) of an adaptable Linear, as float32 [out, in] and [out].

        Raises:
            ValueError: no Merger has a Linear of that name.
        """
        check_linears([name], self.config)
        merger, _, linear = name.rpartition(".")
        index = merger.rpartition(".")[2]
        module = self.deepstack_merger_list[int(index)] if index.isdigit() else self.merger
        kernel, bias = getattr(module, linear).kernel[...], getattr(module, linear).bias[...]
        return np.asarray(kernel, np.float32).T, np.asarray(bias, np.float32)

    def features(
        self,
        packed: PackedPatches,
        adapter: LoraAdapter | None,
        gather: Gather = lambda layer: layer,
    ) -> VisionFeatures:
        """The forward pass on packed arrays, to be called under jit (see `forward`).

        Args:
            gather: applied to each layer's weights right before they are used.
        """
        with matmul_precision(self.config.dtype):
            return self._features(packed, adapter, gather)

    def _features(
        self, packed: PackedPatches, adapter: LoraAdapter | None, gather: Gather
    ) -> VisionFeatures:
        x = self.embed(packed)
        head_dim = self.config.hidden_size // self.config.num_heads
        angles = rope_angles(jnp.asarray(packed.coordinates), head_dim, self.config.rope_theta)
        x, levels = self.encode(x, angles, jnp.asarray(packed.filled), gather)

        outputs: dict[str, Array] = {}
        taps: dict[str, Array] = {}
        inputs = dict(zip(self.config.mergers, (x, *levels), strict=True))
        for name, merger in zip(
            self.config.mergers, (self.merger, *self.deepstack_merger_list), strict=True
        ):
            pairs = merger_pairs(adapter, name)
            scale = adapter.scale if adapter else 0.0
            outputs[name], inner = merger(inputs[name], pairs, scale)
            taps |= {f"{name}.{linear}": tap for linear, tap in inner.items()}
        return VisionFeatures(x, outputs, taps, self.config.deepstack_by_layer)

    def embed(self, packed: PackedPatches) -> Float[Array, "r l d"]:
        """Patch embeddings plus interpolated position embeddings.

        The checkpoint's Conv3d has a kernel equal to its stride, so it is one product with the
        flat patches.
        """
        table = self.pos_embed.embedding[...]
        positions = (table[packed.table_index] * packed.table_weight[..., None]).sum(axis=2)
        x = self.patch_embed(jnp.asarray(packed.patches))
        return x + positions.astype(x.dtype)

    def encode(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        filled: Int[Array, " r"],
        gather: Gather,
    ) -> tuple[Float[Array, "r l d"], list[Float[Array, "r l d"]]]:
        """Apply all blocks; returns the last hidden state and those the DeepStack mergers read."""
        graphdef, layers = nnx.split(self.blocks)
        indexes = self.config.deepstack_indexes
        spare = len(indexes)
        slot = np.full(self.config.depth, spare)
        slot[list(indexes)] = np.arange(spare)

        def layer(
            carry: tuple[Array, Array], xs: tuple[nnx.State, Array]
        ) -> tuple[tuple[Array, Array], None]:
            x, levels = carry
            weights, slot = xs
            x = nnx.merge(graphdef, gather(weights))(x, angles, filled)
            # Every layer writes its output; outputs that no merger reads share the spare slot.
            return (x, jax.lax.dynamic_update_index_in_dim(levels, x, slot, 0)), None

        levels = jnp.zeros((spare + 1, *x.shape), x.dtype)
        (x, levels), _ = jax.lax.scan(layer, (x, levels), (layers, jnp.asarray(slot)))
        return x, list(levels[:spare])


def groups(
    grid_thw: Int[np.ndarray, "n 3"], sizes: list[int], config: VisionConfig
) -> list[tuple[int, Int[np.ndarray, "_ 3"], Int[np.ndarray, " _"]]]:
    """(length of the rows, grid, indices of the patches) of the frames that share a batch."""
    block = config.spatial_merge_size**2
    frames = np.repeat(grid_thw * [0, 1, 1] + [1, 0, 0], grid_thw[:, 0], axis=0)
    own = [row_length(size, block) for size in sizes]
    shared = shared_lengths(own, (), config.padding_for_shape)
    lengths = np.array([shared[length] for length in own])
    of_frame = np.repeat(lengths, sizes)
    return [
        (length, frames[lengths == length], np.flatnonzero(of_frame == length))
        for length in np.unique(lengths).tolist()
    ]


def merger_pairs(adapter: LoraAdapter | None, merger: str) -> dict[str, LoraPair]:
    """The adapter's pairs for one Merger, by the Linear's name within it."""
    pairs = adapter.pairs if adapter else {}
    return {
        name.removeprefix(f"{merger}."): pair
        for name, pair in pairs.items()
        if name.startswith(f"{merger}.")
    }


@tower_jit(0)
def forward(
    graphdef: nnx.GraphDef[Qwen3VisionTower],
    state: nnx.State,
    packed: PackedPatches,
    adapter: LoraAdapter | None,
) -> VisionFeatures:
    """The jitted forward pass; the module is split by the caller."""
    return nnx.merge(graphdef, state).features(packed, adapter)


def unpack(
    parts: Sequence[VisionFeatures],
    slots: Sequence[Int[np.ndarray, " _"]],
    places: Sequence[Int[np.ndarray, " _"]],
    config: VisionConfig,
) -> VisionFeatures:
    """Restore packed batches to the order of the input patches, without padding.

    Args:
        parts: features of each batch, [rows, length, …].
        slots: of each batch, the place of its patches in its rows, counted over all rows.
        places: of each batch, the place of its patches in the input.
        config: the tower's.
    """
    sizes = [part.last_hidden_state.shape[:2] for part in parts]
    starts = np.cumsum([0, *(rows * length for rows, length in sizes[:-1])])
    packed = np.concatenate([slot + start for slot, start in zip(slots, starts, strict=True)])
    index = packed[np.argsort(np.concatenate(places))]
    block = config.spatial_merge_size**2
    return gathered(list(parts), index, index[::block] // block)


@jax.jit
def gathered(
    parts: list[VisionFeatures], patches: Int[Array, " n"], merged: Int[Array, " m"]
) -> VisionFeatures:
    """The rows of all batches at these places, by one program for all features."""

    def joined(arrays: Iterable[Array], index: Array) -> Array:
        rows = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in arrays])
        # The places are `pack`'s own; by default those outside would be looked for.
        return rows.at[index].get(mode="promise_in_bounds")

    first = parts[0]
    return VisionFeatures(
        joined((part.last_hidden_state for part in parts), patches),
        {name: joined((part.outputs[name] for part in parts), merged) for name in first.outputs},
        {name: joined((part.taps[name] for part in parts), merged) for name in first.taps},
        first.by_layer,
    )
