"""Weight tables: which tensor of the torch checkpoint is which array of the Flax tree, both ways.

A table is a list of rules that reads like the architecture. `{layer}` in a torch key is a place on
the leading axis of a stacked Flax array. The same list loads a checkpoint and writes one.
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

from porting.checkpoint import Checkpoint, CheckpointError

Tensor = Shaped[np.ndarray, "..."]
Path = tuple[str | int, ...]
ALIGNMENT = 64  # bytes

# Shows a Flax array as torch lays it out, without a copy: both directions look through it.
Layout = Callable[[Tensor], Tensor]


def same(array: Tensor) -> Tensor:
    return array


# torch's Linear keeps [out, in], Flax's [in, out].
turned = np.transpose


def flat_kernel(shape: tuple[int, ...]) -> Layout:
    """A convolution [D, C, …] whose kernel equals its stride is a Linear [C·…, D]."""
    return lambda array: array.T.reshape(shape)


@dataclass(frozen=True)
class Rule:
    """One line of a table. `layers` is the length of the stack that `{layer}` runs over."""

    torch: str
    flax: str
    layout: Layout = same
    layers: int | None = None

    @property
    def path(self) -> Path:
        return tuple(int(p) if p.isdigit() else p for p in self.flax.split("."))

    def views(self, array: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each torch key with its part of the Flax array, as torch lays it out."""
        if self.layers is None:
            yield self.torch, self.layout(array)
        else:
            for i in range(self.layers):
                yield self.torch.format(layer=i), self.layout(array[i])


def linear(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.kernel", turned, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", same, layers),
    ]


def norm(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.scale", same, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", same, layers),
    ]


def check(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    prefix: str,
    state: nnx.State,
    ignored: Collection[str] = (),
) -> None:
    """Compare the checkpoint's keys under `prefix` with the table and the Flax tree's shapes.

    Args:
        ignored: keys that may be there and are no weights, without the prefix.

    Raises:
        CheckpointError: names every key that is missing, unexpected, or of a wrong shape or dtype.
    """
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    faults: list[str] = []
    expected = {prefix + key for key in ignored}
    for rule in rules:
        # An array of any shape that takes no memory.
        for key, view in rule.views(np.broadcast_to(np.int8(0), shapes.pop(rule.path))):
            expected.add(prefix + key)
            faults += _key_faults(checkpoint, prefix + key, view.shape)
    faults += [f"no rule fills {'.'.join(map(str, path))}" for path in shapes]
    doubts = [what for key, what in checkpoint.doubts.items() if key.startswith(prefix)]
    faults += doubts
    if elsewhere := [what for what in checkpoint.doubts.values() if what not in doubts]:
        warnings.warn(
            f"{checkpoint.directory}: {len(elsewhere)} faults outside {prefix!r}, where nothing is "
            f"read: {elsewhere[0]}",
            stacklevel=2,
        )
    found = {key for key in checkpoint if key.startswith(prefix)}
    faults += [f"{key} is unexpected" for key in sorted(found - expected)]
    if faults:
        raise CheckpointError(checkpoint.directory, faults)


def _key_faults(checkpoint: Checkpoint, key: str, wanted: tuple[int, ...]) -> list[str]:
    if key not in checkpoint:
        return [f"{key} is missing"]
    faults = []
    if checkpoint.shape(key) != wanted:
        faults.append(f"{key} has shape {list(checkpoint.shape(key))}, expected {list(wanted)}")
    return faults + checkpoint.dtype_faults(key)


def to_flax(
    rules: Iterable[Rule],
    checkpoint: Checkpoint,
    prefix: str,
    abstract: nnx.State,
    ignored: Collection[str] = (),
) -> nnx.State:
    """Fill the abstract tree from the checkpoint, one tensor at a time; strict (see `check`).

    Raises:
        CheckpointError: see `check`, or a tensor that holds NaN or infinity.
    """
    rules = list(rules)
    check(rules, checkpoint, prefix, abstract, ignored)
    leaves = dict(nnx.to_flat_state(abstract))
    filled = []
    infinite: list[str] = []
    for rule in rules:
        leaf = leaves[rule.path]
        out = aligned(leaf.shape, leaf.dtype)
        for key, view in rule.views(out):
            assert np.may_share_memory(view, out), f"{key}: its layout makes a copy"
            checkpoint.read_into(prefix + key, view)
            if not np.isfinite(view).all():
                infinite.append(f"{prefix}{key} holds values that are not finite")
        # The array takes the buffer over (jnp.asarray would copy it); nobody writes it after this.
        filled.append((rule.path, leaf.replace(jax.device_put(out))))
    if infinite:
        raise CheckpointError(checkpoint.directory, infinite)
    return nnx.from_flat_state(filled)


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """An array not yet filled that JAX's CPU backend can use where it lies: it begins at 64 bytes.

    NumPy promises 16, and JAX copies what does not begin where its vector code expects it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.empty(size + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    return space[start : start + size].view(dtype).reshape(shape)


def to_torch(
    rules: Iterable[Rule], state: nnx.State, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """The same table the other way: torch keys and tensors, one at a time."""
    leaves = dict(nnx.to_flat_state(state))
    for rule in rules:
        for key, view in rule.views(np.asarray(leaves[rule.path][...])):
            yield prefix + key, view
