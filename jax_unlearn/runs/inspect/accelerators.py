"""Accelerators to compile for without the hardware; needs the packages of the extra `aot`."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from jax_unlearn.models.attention import Kernel
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import AXES

GIB = 2**30
# Memory of a device in GiB. v5e: as the compiler reports it; other TPUs: Google's pages on TPU
# versions; H100 SXM: 79.6 by `nvidia-smi`, minus what the driver reserves (0.4 % on an H200).
MEMORY = {"v4": 32.0, "v5e": 15.75, "v5p": 95.0, "v6e": 31.25, "tpu7x": 192.0, "h100": 79.0}
# Share of a GPU's memory that JAX allocates, unless one of these variables is set; the second is
# the former name of the first (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
GPU_SHARE = 0.75
SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
# Without these libtpu looks for a TPU and queries the machine's metadata.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chips:
    """Accelerators to compile for; memory: bytes of one device that a program may use."""

    name: str
    mesh: Mesh
    memory: int
    kernel: Kernel


def find_chips(text: str, fsdp: int = 1) -> Chips:
    """The accelerators of a name such as v5e:2x2, v5p:2x2x4 or h100:8.

    Args:
        text: the name, KIND:SHAPE.
        fsdp: number of devices over which the blocks' weights are sharded; must divide their total.

    Raises:
        UserError: the kind is unknown, its compiler is not installed, or `fsdp` does not divide the
            number of devices.
    """
    kind, _, shape = text.partition(":")
    if kind not in MEMORY or not shape:
        known = ", ".join(MEMORY)
        raise UserError(f"--plan {text}: must be KIND:SHAPE, as v5e:2x2 or h100:8; kinds: {known}")
    try:
        described = cuda(shape) if kind == "h100" else tpu(text)
    except Exception as error:  # The plugins have no common exception class.
        reason = str(error).splitlines()[0]
        cure = "pip install 'jax-unlearn[aot]', and see JAX's names of topologies"
        raise UserError(f"--plan {text}: cannot be compiled for here ({reason}); {cure}") from error
    devices = np.array(described.devices)
    if fsdp < 1 or devices.size % fsdp:
        raise UserError(f"--fsdp {fsdp}: must divide the {devices.size} devices of {text}")
    devices = devices.reshape(-1, fsdp)
    kernel: Kernel = "triton" if kind == "h100" else "splash"
    share = gpu_share() if kind == "h100" else 1
    return Chips(text, Mesh(devices, AXES), int(share * MEMORY[kind] * GIB), kernel)


def gpu_share() -> float:
    """The share of a GPU's memory that JAX will allocate.

    Raises:
        UserError: the environment variable is not a number above 0 and up to 1.
    """
    for name in SHARE_VARIABLES:
        if text := os.environ.get(name):
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise UserError(f"{name}={text}: must be a number up to 1, as {GPU_SHARE}")
            return share
    return GPU_SHARE


def tpu(name: str) -> Any:
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # libtpu assumes hosts of four chips by default.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)


def cuda(count: str) -> Any:
    shape = f"1x1x{int(count)}"
    facts = (ASSETS / "h100.txtpb").read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=facts
    )
