"""The devices of a run as a mesh with one axis, `data`: every device runs its own batches."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_unlearn.errors import UserError

DATA = "data"


def make_mesh(text: str | None) -> Mesh:
    """The mesh of `--mesh data=N`; all local devices where it is not given.

    Raises:
        UserError: another axis, not a number, or more devices than there are.
    """
    devices = jax.local_devices()
    if text is None:
        return jax.make_mesh((len(devices),), (DATA,), devices=devices)
    axis, _, number = text.partition("=")
    if axis != DATA or not number.isdecimal() or int(number) < 1:
        raise UserError(f"--mesh {text}: must be data=N")
    if int(number) > len(devices):
        raise UserError(f"--mesh {text}: there are {len(devices)} devices here")
    return jax.make_mesh((int(number),), (DATA,), devices=devices[: int(number)])


def over_data(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
