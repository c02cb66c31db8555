"""Weight tables: which tensor of the torch checkpoint is which array of the Flax tree, both ways.

A table is a list of rules that reads like the architecture. `{layer}` in a torch key is a place on
the leading axis of a stacked Flax array. The same list loads a checkpoint and writes one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from porting.checkpoint import DTYPES, Checkpoint, CheckpointError

Tensor = Shaped[np.ndarray, "..."]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Layout:
    """How a torch tensor is laid out in Flax, and back; `torch_shape` is the shape to expect."""

    to_flax: Callable[[Tensor], Tensor]
    to_torch: Callable[[Tensor], Tensor]
    torch_shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Layout(lambda x: x, lambda x: x, lambda shape: shape)
# torch's Linear keeps [out, in], Flax's [in, out].
LINEAR = Layout(np.transpose, np.transpose, lambda shape: shape[::-1])


@dataclass(frozen=True)
class Rule:
    """One line of a table. `layers` is the length of the stack that `{layer}` runs over."""

    torch: str
    flax: str
    layout: Layout = SAME
    layers: int | None = None

    @property
    def path(self) -> Path:
        return tuple(int(p) if p.isdigit() else p for p in self.flax.split("."))

    def torch_keys(self) -> list[str]:
        if self.layers is None:
            return [self.torch]
        return [self.torch.format(layer=i) for i in range(self.layers)]


def linear(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.kernel", LINEAR, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", SAME, layers),
    ]


def norm(torch: str, flax: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{torch}.weight", f"{flax}.scale", SAME, layers),
        Rule(f"{torch}.bias", f"{flax}.bias", SAME, layers),
    ]


def check(rules: Iterable[Rule], checkpoint: Checkpoint, prefix: str, state: nnx.State) -> None:
    """Compare the checkpoint's keys under `prefix` with the table and the Flax tree's shapes.

    Raises:
        CheckpointError: names every key that is missing, unexpected, or of a wrong shape or dtype.
    """
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    faults, expected = [], set()
    for rule in rules:
        shape = shapes.pop(rule.path)
        wanted = rule.layout.torch_shape(shape if rule.layers is None else shape[1:])
        for key in (prefix + key for key in rule.torch_keys()):
            expected.add(key)
            faults += _key_faults(checkpoint, key, wanted)
    faults += [f"no rule fills {'.'.join(map(str, path))}" for path in shapes]
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
    if checkpoint.dtype(key) not in DTYPES.values():
        faults.append(f"{key} has dtype {checkpoint.dtype(key)}, expected {', '.join(DTYPES)}")
    return faults


def to_flax(
    rules: Iterable[Rule], checkpoint: Checkpoint, prefix: str, abstract: nnx.State
) -> nnx.State:
    """Fill the abstract tree from the checkpoint, one tensor at a time; strict (see `check`)."""
    rules = list(rules)
    check(rules, checkpoint, prefix, abstract)
    leaves = dict(nnx.to_flat_state(abstract))
    filled = []
    for rule in rules:
        leaf = leaves[rule.path]
        out = np.empty(leaf.shape, leaf.dtype)
        for i, key in enumerate(rule.torch_keys()):
            out[() if rule.layers is None else i] = rule.layout.to_flax(
                checkpoint.read(prefix + key)
            )
        filled.append((rule.path, leaf.replace(jnp.asarray(out))))
    return nnx.from_flat_state(filled)


def to_torch(
    rules: Iterable[Rule], state: nnx.State, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """The same table the other way: torch keys and tensors, one at a time."""
    leaves = dict(nnx.to_flat_state(state))
    for rule in rules:
        array = np.asarray(leaves[rule.path][...])
        for i, key in enumerate(rule.torch_keys()):
            yield prefix + key, rule.layout.to_torch(array if rule.layers is None else array[i])
