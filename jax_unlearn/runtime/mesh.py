"""The devices of a run as a mesh with two axes, `data` and `fsdp`.

Every device runs batches of its own, whichever axis it is on. Along `fsdp` the devices share the
weights of the tower's blocks besides: each holds a part (`taps.specs`).
"""

import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_unlearn.runtime.errors import UserError

FSDP = "fsdp"
AXES = ("data", FSDP)
SHAPE = re.compile(r"data=([1-9][0-9]*)(?:,fsdp=([1-9][0-9]*))?")
# XLA finds out how what is computed is divided; by JAX's own default the program must say it.
TYPES = (AxisType.Auto, AxisType.Auto)


def make_mesh(text: str | None) -> Mesh:
    """The mesh of `--mesh data=N` or `data=N,fsdp=M`; if not given, all local devices on `data`.

    Raises:
        UserError: other axes, not a number, or more devices than there are.
    """
    devices = jax.local_devices()
    match = SHAPE.fullmatch(text) if text is not None else None
    if text is not None and not match:
        raise UserError(f"--mesh {text}: must be data=N or data=N,fsdp=M")
    data, fsdp = (int(n or 1) for n in match.groups()) if match else (len(devices), 1)
    if data * fsdp > len(devices):
        raise UserError(f"--mesh {text}: there are {len(devices)} devices here")
    return jax.make_mesh((data, fsdp), AXES, TYPES, devices=devices[: data * fsdp])


def shape_of(mesh: Mesh) -> str:
    """As `--mesh` takes it."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def over_data(mesh: Mesh) -> NamedSharding:
    """The first axis divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
