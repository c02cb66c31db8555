"""Compile programs other than the tower's for accelerators, and analyse their collectives.

The hardware is not needed; see `jax_unlearn.runs.inspect.accelerators`.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.harness import PUBLISHED
from jax_unlearn.features.device_gram import add, zeros
from jax_unlearn.models.attention import Kernel
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.objective.linear import LinearProblem
from jax_unlearn.runs.inspect.accelerators import Chips
from jax_unlearn.runs.inspect.memory_plan import shaped
from jax_unlearn.runtime.collectives import added
from jax_unlearn.runtime.mesh import everywhere, over_data
from jax_unlearn.solvers.adam.loop import run_chunk, start

# An instruction of compiled HLO: its results, its kind, and the chain that it is a part of, if any.
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
INSTRUCTION = re.compile(
    rf" = (?P<gives>.*?) (?P<kind>{KINDS})(?:-start)?\("
    r"(?:.*?frontend_attributes=\{chain_id=\"(?P<chain>\d+)\")?"
)
ARRAY = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")
TYPES = {"bf16": "bfloat16", "f32": "float32", "s32": "int32"}
# The towers of Qwen3-VL 2B and 4B, and of 8B and larger ones: layers, D, MLP, heads, E.
TOWERS = {"24x1024": (24, 1024, 4096, 16, 2048), "27x1152": (27, 1152, 4304, 16, 4096)}
NAME = "merger.linear_fc2"


def compile_statistics(d_in: int, rows: int, chips: Chips) -> Any:
    """Compile `device_gram.add` for `rows` rows [D_in] per device."""
    place, slots = over_data(chips.mesh), rows * chips.mesh.devices.size
    sums = jax.eval_shape(lambda: zeros(d_in, chips.mesh))
    batch = shaped((slots, d_in), jnp.float32, place), shaped((slots,), jnp.bool_, place)
    return add.lower(on(sums, place), *batch, mesh=chips.mesh).compile()


def compile_training(d_in: int, e: int, rank: int, epochs: int, chips: Chips) -> Any:
    """Compile a chunk of `train` on the statistics of one Linear.

    The rows are sharded over the devices, whose number must divide them.
    """
    rows, whole = over_data(chips.mesh), everywhere(chips.mesh)
    factors = [shaped(shape, jnp.float32, whole) for shape in ((rank, d_in), (e, rank))]
    sides = [(d_in + e, d_in), (d_in + e, e), (d_in, d_in)]

    def program(a: Array, b: Array, *arrays: Array) -> list[Array]:
        problem, weights = {NAME: LinearProblem(*arrays, 1e6, 1e6)}, PUBLISHED.loss_weights()
        adapter = LoraAdapter({NAME: LoraPair(a, b)}, alpha=float(rank), rank=rank)
        state, _ = start(adapter, problem, weights)
        return jax.tree.leaves(run_chunk(state, problem, weights, 0.01, length=epochs))

    arrays = (shaped(shape, jnp.float32, rows) for shape in sides)
    return jax.jit(program).lower(*factors, *arrays).compile()


def compile_total(numbers: int, chips: Chips) -> Any:
    """Compile the all-reduce of `collectives.all_reduce_sum` between the hosts of the chips."""
    devices = sorted(chips.mesh.devices.flat, key=lambda device: device.process_index)
    mesh = Mesh(np.reshape(devices, (hosts_of(chips), -1)), ("processes", "devices"))
    place = NamedSharding(mesh, PartitionSpec("processes"))
    return added.lower(
        shaped((len(mesh.devices), 3, numbers), jnp.int32, place), mesh=mesh
    ).compile()


def hosts_of(chips: Chips) -> int:
    return len({device.process_index for device in chips.mesh.devices.flat})


def on(tree: Any, place: NamedSharding) -> Any:
    """Shapes with a sharding."""
    return jax.tree.map(lambda x: shaped(x.shape, x.dtype, place), tree)


def tower(name: str, kernel: Kernel) -> VisionConfig:
    """One of TOWERS in bfloat16."""
    return VisionConfig(*TOWERS[name], 2304, (5, 11, 17), dtype="bfloat16", attention=kernel)


@dataclass(frozen=True)
class Collective:
    """A collective of a program: its kind, bytes of its result, and whether it is in a loop.

    The start of an asynchronous all-gather, as in CUDA programs, also returns its operands.
    """

    kind: str
    size: int
    repeated: bool


def collectives(program: Any) -> list[Collective]:
    """The collectives of a program, each once.

    The TPU compiler may split one into a chain of parts in several products. Instructions outside
    the program's entry are assumed to be in its loop.
    """
    text, found = program.as_text(), {}
    entry = text.index("\nENTRY ")
    for match in INSTRUCTION.finditer(text):
        size = sum(map(bytes_of, ARRAY.findall(match["gives"])))
        found[match["chain"] or match.start()] = Collective(
            match["kind"], size, match.start() < entry
        )
    return list(found.values())


def bytes_of(array: tuple[str, str]) -> int:
    """Bytes of an array in HLO's notation: its type, and its sizes separated by commas."""
    kind, sizes = array
    return jnp.dtype(TYPES[kind]).itemsize * prod(map(int, re.findall(r"\d+", sizes)))


def received(program: Any, depth: int, group: int) -> float:
    """Bytes that a device receives from others of its group when the program runs once.

    In an all-gather it receives the part of the result that it lacks; in a ring all-reduce twice
    that (Thakur et al. 2005, Optimization of Collective Communication Operations in MPICH).

    Args:
        program: the compiled program.
        depth: number of iterations of the program's loop.
        group: number of devices of every collective.
    """
    times = {"all-gather": 1, "all-reduce": 2}
    given = sum(
        times[one.kind] * one.size * (depth if one.repeated else 1) for one in collectives(program)
    )
    return given * (group - 1) / group
