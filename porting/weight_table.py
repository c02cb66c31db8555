"""Weight tables: map tensors of a torch checkpoint to arrays of a Flax state, in both directions.

A table is a list of rules in the order of the architecture. `{layer}` in a torch key is an index on
the leading axis of a stacked Flax array. The same table loads a checkpoint and writes one.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from numpy.typing import DTypeLike

from porting.checkpoint import Checkpoint, CheckpointError, missing_files

Tensor = Shaped[np.ndarray, "..."]
Path = tuple[str | int, ...]
ALIGNMENT = 64  # bytes
# Part of the keys of a Linear that PEFT has wrapped.
UNMERGED = ".base_layer."

# Returns a view of a Flax array in torch's layout, without a copy; used for reading and writing.
Layout = Callable[[Tensor], Tensor]


def unchanged(array: Tensor) -> Tensor:
    return array


# torch's Linear stores [out, in], Flax's [in, out].
transposed = np.transpose


def flat_kernel(shape: tuple[int, ...]) -> Layout:
    """Layout of a convolution [D, C, …] with kernel = stride, a Linear [C·…, D] in Flax."""
    return lambda array: array.T.reshape(shape)


@dataclass(frozen=True)
class Rule:
    """A line of a table: torch key, Flax path, layout, and number of layers for `{layer}`."""

    torch: str
    flax: str
    layout: Layout = unchanged
    layers: int | None = None

    @property
    def path(self) -> Path:
        return tuple(int(p) if p.isdigit() else p for p in self.flax.split("."))

    def views(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each torch key with a view of its part of the Flax array in torch's layout."""
        if self.layers is None:
            yield self.torch, self.layout(array)
        else:
            for i in range(self.layers):
                yield self.torch.format(layer=i), self.layout(array[i])


def linear(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.kernel", transposed, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", unchanged, layers),
    ]


def norm(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.scale", unchanged, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", unchanged, layers),
    ]


def check(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    prefix: str,
    state: nnx.State,
    ignored: Collection[str] = (),
) -> None:
    """Compare the checkpoint's keys under `prefix` with the table and the shapes of the Flax state.

    Args:
        rules: the table.
        checkpoint: the checkpoint.
        prefix: prefix of the keys.
        state: the Flax state, or its shapes.
        ignored: keys, without the prefix, that may exist and are not weights.

    Raises:
        CheckpointError: keys are missing, unexpected, or of a wrong shape or dtype; names all.
    """
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    faults: list[str] = []
    expected = {prefix + key for key in ignored}
    for rule in rules:
        # A broadcast array has the shape without taking memory.
        for key, view in rule.views(np.broadcast_to(np.int8(0), shapes.pop(rule.path))):
            expected.add(prefix + key)
            faults += _key_faults(checkpoint, prefix + key, view.shape)
    faults += [f"no rule fills {'.'.join(map(str, path))}" for path in shapes]
    faults += missing_files(
        name for key, name in checkpoint.missing.items() if key.startswith(prefix)
    )
    doubts = [what for key, what in checkpoint.doubts.items() if key.startswith(prefix)]
    faults += doubts
    if elsewhere := [what for what in checkpoint.doubts.values() if what not in doubts]:
        warnings.warn(
            f"{checkpoint.directory}: {len(elsewhere)} faults outside {prefix!r}, where nothing is "
            f"read: {elsewhere[0]}",
            stacklevel=2,
        )
    found = {key for key in checkpoint if key.startswith(prefix)}
    if adapted := sorted(key for key in found if UNMERGED in key):
        fault = f"{adapted[0]} is of a model with an adapter that is not merged"
        raise CheckpointError(checkpoint.directory, [f"{fault}; save it after merge_and_unload()"])
    faults += [f"{key} is unexpected" for key in sorted(found - expected)]
    if faults:
        raise CheckpointError(checkpoint.directory, faults)


def _key_faults(checkpoint: Checkpoint, key: str, wanted: tuple[int, ...]) -> list[str]:
    if key not in checkpoint:
        return [] if key in checkpoint.missing else [f"{key} is missing"]
    if faults := checkpoint.dtype_faults(key):
        return faults
    if (shape := checkpoint.shape(key)) == wanted:
        return []
    return [f"{key} has shape {list(shape)}, expected {list(wanted)}"]


def to_flax(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    prefix: str,
    abstract: nnx.State,
    ignored: Collection[str] = (),
) -> nnx.State:
    """Load the state from a checkpoint, one tensor at a time, after `check` (same arguments).

    Raises:
        CheckpointError: see `check`; or a tensor contains NaN or infinity.
    """
    rules = list(rules)
    check(rules, checkpoint, prefix, abstract, ignored)
    leaves = dict(nnx.to_flat_state(abstract))
    arrays = []
    infinite: list[str] = []
    for rule in rules:
        leaf = leaves[rule.path]
        out = aligned(leaf.shape, leaf.dtype)
        for key, view in rule.views(out):
            assert np.may_share_memory(view, out), f"{key}: its layout makes a copy"
            infinite += read_finite(checkpoint, prefix + key, view)
        # device_put shares the buffer (jnp.asarray would copy it), which is not written after this.
        arrays.append((rule.path, leaf.replace(jax.device_put(out))))
    if infinite:
        raise CheckpointError(checkpoint.directory, infinite)
    return nnx.from_flat_state(arrays)


def verify(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    prefix: str,
    abstract: nnx.State,
    ignored: Collection[str] = (),
) -> None:
    """Read every tensor as `to_flax` does, one at a time, without keeping it; same arguments.

    Raises:
        CheckpointError: as `to_flax`.
    """
    rules = list(rules)
    check(rules, checkpoint, prefix, abstract, ignored)
    leaves = dict(nnx.to_flat_state(abstract))
    infinite: list[str] = []
    for rule in rules:
        leaf = leaves[rule.path]
        for key, view in rule.views(np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)):
            infinite += read_finite(checkpoint, prefix + key, np.empty(view.shape, leaf.dtype))
    if infinite:
        raise CheckpointError(checkpoint.directory, infinite)


def read_finite(checkpoint: Checkpoint, key: str, out: Tensor) -> list[str]:
    """Read a tensor into `out`; a fault if it contains NaN or infinity."""
    checkpoint.read_into(key, out)
    return [] if np.isfinite(out).all() else [f"{key} holds values that are not finite"]


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """An uninitialised array aligned to 64 bytes, which JAX's CPU backend can use without a copy.

    NumPy guarantees 16 bytes only.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.empty(size + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    return space[start : start + size].view(dtype).reshape(shape)


def torch_tensors(
    rules: Iterable[Rule], state: nnx.State, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yields the torch keys and tensors of a Flax state, one at a time."""
    leaves = dict(nnx.to_flat_state(state))
    for rule in rules:
        for key, view in rule.views(np.asarray(leaves[rule.path][...])):
            yield prefix + key, view
