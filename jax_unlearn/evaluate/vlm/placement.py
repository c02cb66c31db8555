"""On which device, and in which data type, the Hugging Face model runs."""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jax_unlearn.runtime.errors import UserError

# Parameters from which bfloat16 is the default: on an accelerator, where it is faster, and on a
# CPU, where float32 would take 16 GB.
LARGE_ON_ACCELERATOR, LARGE_ON_CPU = 100_000_000, 4_000_000_000


def choose_device(wanted: str) -> Any:
    """The device of PyTorch with this name; for "auto" the accelerator if there is one.

    Raises:
        UserError: PyTorch knows no such device, or this machine has none.
    """
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(
            f"--device {wanted}: is not a device of PyTorch; give auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if here and here.type == device.type else 0
    if (device.index or 0) >= count:
        raise UserError(
            f"--device {wanted}: PyTorch sees {count} of this kind here; give another, or auto"
        )
    return device


def choose_dtype(wanted: str, device: Any, parameters: int) -> str:
    """float32 or bfloat16; for "auto" bfloat16 for large models."""
    if wanted != "auto":
        return wanted
    large = LARGE_ON_CPU if device.type == "cpu" else LARGE_ON_ACCELERATOR
    return "bfloat16" if parameters >= large else "float32"


def stored_parameters(checkpoint: Path) -> int:
    """The number of parameters in a checkpoint's safetensors, from their headers.

    Raises:
        UserError: a file cannot be read.
    """
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); download it again") from error
        total += sum(map(math.prod, shapes))
    return total
