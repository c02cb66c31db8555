"""The devices of a run as a mesh with two axes, `data` and `fsdp`.

Every device processes its own batches, on both axes. Along `fsdp` the weights of the tower's blocks
are also sharded (`taps.specs`).
"""

import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_unlearn.runtime.errors import UserError

FSDP = "fsdp"
AXES = ("data", FSDP)
SHAPE = re.compile(r"data=([1-9][0-9]*)(?:,fsdp=([1-9][0-9]*))?")
# XLA infers the sharding of intermediate values; with JAX's default (Explicit) the program would
# have to declare it.
TYPES = (AxisType.Auto, AxisType.Auto)


def make_mesh(text: str | None) -> Mesh:
    """The mesh for `--mesh data=N` or `data=N,fsdp=M`; None puts all local devices on `data`.

    Raises:
        UserError: `text` has another form, or asks for more devices than this process has.
    """
    devices = jax.local_devices()
    match = SHAPE.fullmatch(text) if text is not None else None
    if text is not None and not match:
        raise UserError(f"--mesh {text}: must be data=N or data=N,fsdp=M")
    data, fsdp = (int(n or 1) for n in match.groups()) if match else (len(devices), 1)
    if data * fsdp > len(devices):
        raise UserError(f"--mesh {text}: only {len(devices)} devices here; give at most as many")
    return jax.make_mesh((data, fsdp), AXES, TYPES, devices=devices[: data * fsdp])


def shape_of(mesh: Mesh) -> str:
    """The mesh in the syntax of `--mesh`."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def over_data(mesh: Mesh) -> NamedSharding:
    """Shards the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())
