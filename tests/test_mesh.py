"""Several devices: the same statistics and the same adapter as one."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unlearn.errors import UserError
from jax_unlearn.mesh import make_mesh
from tests.runs import arguments, read

ROWS = {"granularity": "tokens", "max_pixels": 512}


def run_on(devices, folder, out, **options):
    """A run in a process of its own: the number of CPU devices is fixed when JAX starts."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "jax_unlearn.cli", *arguments(folder, out, **options)]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return out


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    return run_on(1, folder, tmp_path_factory.mktemp("mesh") / "alone", **ROWS)


@pytest.mark.parametrize(("devices", "options"), [(8, {}), (4, {"mesh": "data=3"})])
def test_devices_give_the_statistics_and_the_adapter_of_one(
    alone, folder, tmp_path, devices, options
):
    out = run_on(devices, folder, tmp_path / "many", **ROWS, **options)
    for name in ("statistics.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(out / name), load_file(alone / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if not key.endswith("image") and value.dtype.kind == "f":
                # Images come in another order, and each is a row of its own in what is kept of it.
                assert ours[key].shape == value.shape, key
                if key.split(".")[-1] in ("gram", "total") or name.startswith("adapter"):
                    gap = np.linalg.norm(ours[key] - value)
                    assert gap <= 1e-5 * np.linalg.norm(value), key
    first, second = (read(path / "metrics.json") for path in (out, alone))
    assert first["samples"] == second["samples"]
    assert first["tower"]["patches"] == second["tower"]["patches"]


def test_a_mesh_is_a_number_of_devices_that_are_there():
    assert make_mesh(None).devices.size == jax.local_device_count()
    assert make_mesh("data=1").axis_names == ("data",)
    for text in ("data=99", "data=0", "model=1", "data", "data=x"):
        with pytest.raises(UserError, match=f"--mesh {text}"):
            make_mesh(text)
