"""Several devices: the same statistics and the same adapter as one."""

import shutil
from pathlib import Path
from unittest import mock

import jax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from jax_unlearn.features.extractor import Extractor
from jax_unlearn.features.tower_pass import place_tower, specs
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.fingerprint import differences
from jax_unlearn.runs.sources import qwen_tower
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import FSDP, make_mesh
from porting import load_vision_tower
from tests.running import CLOSED_FORM, arguments, on_eight_devices, read, same_outcome, source

ROWS = {"granularity": "tokens"} | CLOSED_FORM


# Of the last two devices are left over, and three cannot share an axis of 32: they share others.
MESHES = {"all": {}, "some": {"mesh": "data=2,fsdp=3"}}


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The run of one device, which is what there is in this process."""
    assert jax.local_device_count() == 1
    out = tmp_path_factory.mktemp("mesh") / "alone"
    main(arguments(folder, out, **ROWS))
    return out


def make_runs(folder, out):
    for name, mesh in MESHES.items():
        main(arguments(Path(folder), Path(out, name), **ROWS, **mesh))


@pytest.fixture(scope="module")
def many(folder, tmp_path_factory):
    """Both runs of eight in one process, for its start takes as long as they do."""
    out = tmp_path_factory.mktemp("mesh")
    on_eight_devices(make_runs, str(folder), str(out))
    return out


@pytest.mark.parametrize("mesh", MESHES)
def test_devices_give_the_statistics_and_the_adapter_of_one(alone, many, mesh):
    same_outcome(many / mesh, alone)
    first, second = (read(path / "metrics.json") for path in (many / mesh, alone))
    assert first["samples"] == second["samples"]
    assert first["tower"]["patches"] == second["tower"]["patches"]


def check_shares(checkpoint):
    state = nnx.split(load_vision_tower(checkpoint))[1]
    placed = place_tower(state, make_mesh("data=2,fsdp=4"))
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(placed["blocks"]):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state["blocks"]))
    assert list(held.values()) == [whole // 4] * 8


def check_identity(folder):
    ours, theirs = (
        source(Path(folder), mesh=mesh).fingerprint() for mesh in ("data=8", "data=4,fsdp=2")
    )
    (changed,) = differences(theirs, ours, ("then", "now"))
    assert changed == "devices: data=4,fsdp=2 of cpu then, data=8,fsdp=1 of cpu now"


def check_evaluate(run):
    before = read(run / "metrics.json")
    # Without it the tower is run again.
    (run / "statistics.safetensors").unlink()
    given = ["--mesh", "data=4,fsdp=2", "--workers", "0", "--batch-patches", "512"]
    with mock.patch.object(qwen_tower, "Extractor", wraps=Extractor) as made:
        main(["evaluate", str(run), *given])
    settings, mesh, workers, _ = made.call_args.args[3:]
    found = dict(mesh.shape), workers, settings.batch_patches
    assert found == ({"data": 4, "fsdp": 2}, 0, 512)
    after = read(run / "metrics.json")
    for name in ("forget", "preserve"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


def check_devices(folder, run):
    check_shares(Path(folder, "checkpoint"))
    check_identity(folder)
    check_evaluate(Path(run))


def test_what_is_divided_what_goes_on_and_what_is_evaluated_on_many(alone, folder, tmp_path):
    """In one process, for its start takes longer."""
    copy = shutil.copytree(alone, tmp_path / "run")
    on_eight_devices(check_devices, str(folder), str(copy))


def test_the_first_axis_that_fits_is_divided_and_the_rest_of_the_tower_is_not(tiny_tower):
    state = nnx.split(tiny_tower)[1]
    found = specs(state, 3)
    attention = found["blocks"]["attn"]
    assert attention["qkv"]["kernel"].get_value() == PartitionSpec(None, None, FSDP)
    assert attention["proj"]["kernel"].get_value() == PartitionSpec()
    assert found["blocks"]["mlp"]["linear_fc2"]["kernel"].get_value() == PartitionSpec(None, FSDP)
    assert found["merger"]["linear_fc1"]["kernel"].get_value() == PartitionSpec()
    assert not any(jax.tree.leaves(specs(state, 1)))


def test_a_mesh_is_a_number_of_devices_that_are_there():
    assert make_mesh(None).devices.size == jax.local_device_count()
    assert make_mesh("data=1,fsdp=1").shape == {"data": 1, "fsdp": 1}
    texts = (
        "data=99",
        "data=1,fsdp=99",
        "data=0",
        "model=1",
        "fsdp=2",
        "data",
        "data=x",
        "data=1,",
    )
    for text in texts:
        with pytest.raises(UserError, match=f"--mesh {text}"):
            make_mesh(text)
