"""The Qwen3-VL vision tower: patches → ViT → Mergers, every feature and tap returned by name.

Facts of the architecture: Qwen3-VL's `Qwen3VLVisionModel` in transformers 5.23. The Mergers use the
exact (erf) GELU while the blocks' MLPs use the one that the config names, tanh as a rule.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jax_unlearn.data.packing import PackedPatches, batch_shape, frame_sizes, pack
from jax_unlearn.lora import LoraAdapter, LoraPair
from jax_unlearn.models.attention import Kernel, best_kernel, segment_attention, skips
from jax_unlearn.models.jit import tower_jit
from jax_unlearn.models.layers import ACTIVATIONS, adapted, layer_norm, matmul_precision, stack

EPSILON = 1e-6
LINEARS = ("linear_fc1", "linear_fc2")
# Makes one layer's weights whole where a device holds only a part of them.
Gather = Callable[[nnx.State], nnx.State]


@dataclass(frozen=True)
class VisionConfig:
    """The tower's shape. D is `hidden_size`, E is `out_hidden_size`.

    single_linear: each Merger is one Linear on the merged patches, called `linear_fc2`.
    attention: the kernel, by default the backend's best.
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
    def one_row(self) -> bool:
        """Whether frames of all sizes share one row (see `attention.skips`)."""
        return skips(self.kernel)

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of a merged vector, D_in of every Linear of a Merger."""
        return self.hidden_size * self.spatial_merge_size**2

    @property
    def table_side(self) -> int:
        return int(self.num_position_embeddings**0.5)

    @property
    def mergers(self) -> tuple[str, ...]:
        """Names of the paths to the language model: the Merger, then the DeepStack mergers."""
        deepstack = (f"deepstack_merger_list.{i}" for i in range(len(self.deepstack_indexes)))
        return ("merger", *deepstack)

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the Linears that an adapter may change."""
        names = LINEARS[1:] if self.single_linear else LINEARS
        return tuple(f"{merger}.{name}" for merger in self.mergers for name in names)

    @property
    def deepstack_by_layer(self) -> tuple[str, ...]:
        """The DeepStack mergers in the order of the layers that they read."""
        by_layer = sorted(zip(self.deepstack_indexes, self.mergers[1:], strict=True))
        return tuple(name for _, name in by_layer)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionFeatures:
    """Every feature of one pass. Leading axes are [n], or [rows, length] while packed.

    last_hidden_state: output of the last block, [n_patches, D]. outputs: of each of
    `VisionConfig.mergers`, by its name, [n_merged, E]. taps: input of each adaptable Linear, by its
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


def rope_angles(
    coordinates: Int[Array, "*n 2"], head_dim: int, theta: float
) -> Float[Array, "*n head_dim"]:
    """Axial 2-D rotary angles in float32: [h, w] frequencies of head_dim/4 each, then doubled."""
    quarter = head_dim // 4
    inverse = 1.0 / theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = coordinates[..., None].astype(jnp.float32) * inverse
    half = angles.reshape(*coordinates.shape[:-1], 2 * quarter)
    return jnp.concatenate([half, half], axis=-1)


def rotate(x: Float[Array, "r l h d"], angles: Float[Array, "r l d"]) -> Float[Array, "r l h d"]:
    """Apply rotary angles in float32: in bfloat16 neighbouring positions would coincide."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


class VisionMLP(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.linear_fc1 = linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = linear(config.intermediate_size, config.hidden_size)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "r l d"]) -> Float[Array, "r l d"]:
        return self.linear_fc2(ACTIVATIONS[self.hidden_act](self.linear_fc1(x)))


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = linear(config.hidden_size, config.hidden_size)
        self.num_heads = config.num_heads
        self.kernel = config.kernel

    def __call__(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        segment: Int[Array, "r l"],
    ) -> Float[Array, "r l d"]:
        rows, length, width = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = segment_attention(rotate(q, angles), rotate(k, angles), v, segment, self.kernel)
        return self.proj(out.reshape(rows, length, width))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.hidden_size, EPSILON, config.dtype, rngs)
        self.norm2 = layer_norm(config.hidden_size, EPSILON, config.dtype, rngs)
        self.attn = VisionAttention(config, rngs=rngs)
        self.mlp = VisionMLP(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        segment: Int[Array, "r l"],
    ) -> Float[Array, "r l d"]:
        x = x + self.attn(self.norm1(x), angles, segment)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """norm → 2×2 patch merge → linear_fc1 → GELU (erf) → linear_fc2.

    The main Merger normalises each patch before the merge, a DeepStack merger the merged vector.
    With `config.single_linear` it is 2×2 patch merge → linear_fc2 and nothing else.
    """

    def __init__(self, config: VisionConfig, *, norm_merged: bool, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        self.linear_fc2 = linear(config.merged_size, config.out_hidden_size)
        self.norm_merged = norm_merged
        self.single_linear = config.single_linear
        if not config.single_linear:
            width = config.merged_size if norm_merged else config.hidden_size
            self.norm = layer_norm(width, EPSILON, config.dtype, rngs)
            self.linear_fc1 = linear(config.merged_size, config.merged_size)

    def __call__(
        self, x: Float[Array, "r l d"], pairs: dict[str, LoraPair], scale: float
    ) -> tuple[Float[Array, "r m e"], dict[str, Float[Array, "r m d_in"]]]:
        """The embeddings, and the taps: the Linears' inputs. `pairs` may be empty."""
        merged = (x.shape[0], -1, self.linear_fc2.in_features)
        taps = {}
        if self.single_linear:
            x = x.reshape(merged)
        else:
            x = self.norm(x.reshape(merged)) if self.norm_merged else self.norm(x).reshape(merged)
            taps["linear_fc1"] = x
            x = adapted(self.linear_fc1, x, pairs.get("linear_fc1"), scale)
            x = jax.nn.gelu(x, approximate=False)
        taps["linear_fc2"] = x
        return adapted(self.linear_fc2, x, pairs.get("linear_fc2"), scale), taps


class Qwen3VisionTower(nnx.Module):
    """The tower. `tower(pixel_values, grid_thw)` takes the image processor's arrays as they are.

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
        pixel_values: Float[Array | np.ndarray, "patches patch"],
        grid_thw: Int[Array | np.ndarray, "n 3"],
        adapter: LoraAdapter | None = None,
    ) -> VisionFeatures:
        """Features of several images or videos of any size.

        Args:
            pixel_values: [n_patches, C·tp·p·p], as HF's image processor lays them out.
            grid_thw: [n, 3] frames, height, width in patches; concrete (it decides the shapes).
            adapter: low-rank changes of some of the Mergers' Linears.

        Raises:
            ValueError: the grid does not belong to the patches, or the adapter names a Linear
                that the tower does not have.
        """
        config = self.config
        check_linears(adapter.pairs if adapter else (), config)
        grid, merge = np.asarray(grid_thw), config.spatial_merge_size
        rows, length = batch_shape(frame_sizes(grid), merge**2, config.one_row)
        packed, slots = pack(
            np.asarray(pixel_values),
            grid,
            merge=merge,
            side=config.table_side,
            rows=rows,
            length=length,
        )
        graphdef, state = nnx.split(self)
        return unpack(forward(graphdef, state, packed, adapter), slots, config)

    def linear(self, name: str) -> tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]:
        """(weight, bias) of an adaptable Linear by its name, as float32 [out, in] and [out].

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
        """The forward on packed arrays, to be called under jit (see `forward`).

        gather: called with each layer's weights right before they are used.
        """
        with matmul_precision(self.config.dtype):
            return self._features(packed, adapter, gather)

    def _features(
        self, packed: PackedPatches, adapter: LoraAdapter | None, gather: Gather
    ) -> VisionFeatures:
        x = self.embed(packed)
        head_dim = self.config.hidden_size // self.config.num_heads
        angles = rope_angles(jnp.asarray(packed.coordinates), head_dim, self.config.rope_theta)
        x, levels = self.encode(x, angles, jnp.asarray(packed.segment), gather)

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
        """Patch embedding plus the interpolated positions.

        The checkpoint's Conv3d has a kernel equal to its stride: one product with the flat patch.
        """
        table = self.pos_embed.embedding[...]
        positions = (table[packed.table_index] * packed.table_weight[..., None]).sum(axis=2)
        x = self.patch_embed(jnp.asarray(packed.patches))
        return x + positions.astype(x.dtype)

    def encode(
        self,
        x: Float[Array, "r l d"],
        angles: Float[Array, "r l head_dim"],
        segment: Int[Array, "r l"],
        gather: Gather,
    ) -> tuple[Float[Array, "r l d"], list[Float[Array, "r l d"]]]:
        """All blocks; also the hidden states that the DeepStack mergers read."""
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
            x = nnx.merge(graphdef, gather(weights))(x, angles, segment)
            # Every layer writes its output; those that nobody reads share the spare slot.
            return (x, jax.lax.dynamic_update_index_in_dim(levels, x, slot, 0)), None

        levels = jnp.zeros((spare + 1, *x.shape), x.dtype)
        (x, levels), _ = jax.lax.scan(layer, (x, levels), (layers, jnp.asarray(slot)))
        return x, list(levels[:spare])


def check_linears(names: Iterable[str], config: VisionConfig) -> None:
    """An unknown name would otherwise be a change that is silently left out."""
    if unknown := sorted(set(names) - set(config.linears)):
        known = sorted(config.linears)
        raise ValueError(f"the tower has no Linear {', '.join(unknown)}; it has {known}")


def merger_pairs(adapter: LoraAdapter | None, merger: str) -> dict[str, LoraPair]:
    """The adapter's pairs that belong to one Merger, by the Linear's own name."""
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
    """The jitted forward, with the module split outside: arrays go in, arrays come out."""
    return nnx.merge(graphdef, state).features(packed, adapter)


def unpack(
    features: VisionFeatures, slots: Int[np.ndarray, " patches"], config: VisionConfig
) -> VisionFeatures:
    """Packed features back in the order of the input patches, padding dropped."""
    block = config.spatial_merge_size**2
    merged_slots = slots[::block] // block

    def gather(x: Float[Array, "r l w"], index: np.ndarray) -> Float[Array, "n w"]:
        return x.reshape(-1, x.shape[-1])[index]

    return VisionFeatures(
        gather(features.last_hidden_state, slots),
        {name: gather(x, merged_slots) for name, x in features.outputs.items()},
        {name: gather(x, merged_slots) for name, x in features.taps.items()},
        features.by_layer,
    )
