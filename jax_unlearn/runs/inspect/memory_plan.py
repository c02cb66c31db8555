"""Plan the memory of a tower's pass on accelerators, by compiling for them without running."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from jax_unlearn.features.device_gram import zeros
from jax_unlearn.features.tower_pass import specs, tap_rows
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.packing import PackedPatches
from jax_unlearn.runs.inspect.accelerators import GIB, Chips
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import FSDP, over_data
from porting.qwen3_vision import abstract_tower

# Length of the rows of a batch in the plan, in patches: an image of one megapixel.
ROW = 4096
# Largest number of rows considered; more would be gigabytes of pixels.
MOST_ROWS = 256


def compile_pass(config: VisionConfig, chips: Chips, rows: int, length: int) -> Any:
    """Compile `tower_pass.tap_rows` for rows × length patches per device.

    Raises:
        jax.errors.JaxRuntimeError: it does not fit (TPU only; CUDA's compiler does not check).
    """
    graphdef, state = tower_on(config, chips)
    names = tuple(f"{merger}.linear_fc2" for merger in config.mergers)

    def program(state: nnx.State, *arrays: Array) -> dict[str, Array]:
        packed = PackedPatches(*arrays)
        return tap_rows.function(graphdef, state, packed, names, chips.mesh)

    # keep_unused, because weights that the program does not use are on the device as well.
    compiled = jax.jit(program, keep_unused=True)
    return compiled.lower(state, *batch_on(config, chips, rows, length)).compile()


def tower_on(config: VisionConfig, chips: Chips) -> tuple[Any, nnx.State]:
    """The tower's graphdef and state, as shapes with shardings."""
    graphdef, state = nnx.split(abstract_tower(config))
    placed = jax.tree.map(
        lambda x, spec: shaped(x.shape, x.dtype, NamedSharding(chips.mesh, spec)),
        state,
        specs(state, chips.mesh.shape[FSDP]),
    )
    return graphdef, placed


def batch_on(
    config: VisionConfig, chips: Chips, rows: int, length: int
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The fields of `PackedPatches` as shapes with shardings, one batch per device."""
    lead, data = (rows * chips.mesh.devices.size, length), over_data(chips.mesh)
    return (
        shaped((*lead, config.patch_dim), jnp.float32, data),
        shaped((*lead, 2), jnp.int32, data),
        shaped((*lead, 4), jnp.int32, data),
        shaped((*lead, 4), jnp.float32, data),
        shaped(lead[:1], jnp.int32, data),
    )


def shaped(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def held(tree: Any) -> int:
    """Bytes per device of a tree of shapes with shardings."""
    return sum(
        prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def weights(config: VisionConfig, chips: Chips) -> int:
    """Bytes per device of the tower."""
    return held(tower_on(config, chips)[1])


def statistics(config: VisionConfig, chips: Chips) -> int:
    """Bytes per device of the sums of `device_gram`, at the last Linear of each Merger."""
    sums = jax.eval_shape(lambda: zeros(config.merged_size, chips.mesh))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(sums))
    return len(config.mergers) * size // chips.mesh.devices.size


def plan(config: VisionConfig, chips: Chips) -> dict[str, Any]:
    """The largest batch that fits, its memory by part, and the work of a pass.

    Raises:
        UserError: not even one row fits.
    """
    rows, memory = most_rows(config, chips), dict[str, int]()
    while rows and not (memory := fitting(config, chips, rows)):
        rows //= 2
    if not memory:
        raise UserError(f"--plan {chips.name}: not even one row of {ROW} patches fits")
    images = 1000
    return {
        "devices": chips.mesh.devices.size,
        "memory of a device in GiB": round(chips.memory / GIB, 2),
        "largest batch of a device in patches": rows * ROW,
        "its memory in MiB": {name: round(size / 2**20, 1) for name, size in memory.items()},
        f"TFLOP of {images} images of {ROW} patches": round(images * flops(config, ROW) / 1e12, 1),
    }


def most_rows(config: VisionConfig, chips: Chips) -> int:
    """An upper bound of the number of rows that fit, a power of two; 0 if none does.

    It ignores the memory of temporaries. Compiling for more rows does not take longer.
    """
    patches = ROW // config.spatial_merge_size**2
    taps = len(config.mergers) * patches * config.merged_size * jnp.float32.dtype.itemsize
    free = chips.memory - weights(config, chips) - statistics(config, chips)
    rows = free // (2 * (held(batch_on(config, chips, 1, ROW)) + taps))
    return min(MOST_ROWS, 1 << (rows.bit_length() - 1)) if rows > 0 else 0


def fitting(config: VisionConfig, chips: Chips, rows: int) -> dict[str, int]:
    """Bytes per device by part for a batch of `rows` rows; empty if it does not fit."""
    try:
        program = compile_pass(config, chips, rows, ROW)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {}
    memory = memory_of(program, weights(config, chips))
    # Two batches are in memory at a time (see `Extractor.pipelined`).
    memory["the other batch in flight"] = memory["batch"] + memory["rows at the taps"]
    memory["statistics of tokens"] = statistics(config, chips)
    return memory if sum(memory.values()) <= chips.memory else {}


def memory_of(program: Any, tower: int) -> dict[str, int]:
    """Bytes per device by part, from the compiled program and the known size of the tower."""
    sizes = program.memory_analysis()
    return {
        "tower": tower,
        "batch": sizes.argument_size_in_bytes - tower,
        "rows at the taps": sizes.output_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
    }


def flops(config: VisionConfig, patches: int) -> int:
    """Floating-point operations for an image of one frame, two per multiply-add.

    Multiply-adds per patch and block are 4 D² of attention's Linears, 2 D F of the MLP and 2 n D of
    attention, for n patches; linear_fc1 of each Merger has (4 D)² per 4 patches (2 × 2 blocks).
    """
    d, f = config.hidden_size, config.intermediate_size
    block = 4 * d**2 + 2 * d * f + 2 * patches * d
    embed = config.patch_dim * d
    mergers = len(config.mergers) * config.merged_size**2 // config.spatial_merge_size**2
    return 2 * patches * (config.depth * block + embed + mergers)
