"""The benchmark of scale at toy size, on CPU devices in place of a slice."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from benchmarks.scale import chips, compiled
from jax_unlearn.runs.inspect.accelerators import Chips
from jax_unlearn.runs.inspect.memory_plan import compile_pass, weights
from jax_unlearn.runtime.mesh import make_mesh
from porting.qwen3_vision import abstract_tower
from tests.running import on_eight_devices
from tests.runs.test_memory_plan import SMALL

DEPTH = 7


def size(state):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def cpu_chips(data, fsdp):
    return Chips("cpu", make_mesh(f"data={data},fsdp={fsdp}"), 2**30, "xla")


def bytes_of(depth, fsdp):
    """(Bytes that a device receives in a pass, bytes of its weights) of a small tower."""
    config, place = replace(SMALL, depth=depth), cpu_chips(8 // fsdp, fsdp)
    program = compile_pass(config, place, rows=1, length=64)
    return compiled.received(program, depth, fsdp), weights(config, place)


def write_both(folder):
    """What both tests look at, in one process: its start takes as long as they do."""
    received = {fsdp: bytes_of(DEPTH, fsdp) for fsdp in (1, 2, 4)}
    Path(folder, "bytes.json").write_text(json.dumps(received))
    compiled.TOWERS["24x1024"] = (18, 16, 32, 2, 8)
    chips.find_chips = lambda name, fsdp: cpu_chips(
        chips.chips_of(name.split(":")[1]) // fsdp, fsdp
    )
    # Two devices a host.
    chips.hosts_of = compiled.hosts_of = lambda chips: -(-chips.mesh.size // 2)
    out = f"{folder}/scale.json"
    chips.main(f"--towers 24x1024 --slices 1x1 2x2 --fsdp 2 --rows 1 --out {out}".split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chips")
    on_eight_devices(write_both, str(folder))
    return folder


def test_bytes_received_are_those_of_the_weights(written):
    """All of the blocks but the device's own share, layer by layer, and nothing without fsdp."""
    state = nnx.split(abstract_tower(replace(SMALL, depth=DEPTH)))[1]
    blocks = size(state["blocks"])
    for fsdp, found in json.loads((written / "bytes.json").read_text()).items():
        share = blocks / int(fsdp)
        assert found == [blocks - share, size(state) - blocks + share]


def test_scale(written):
    out = written / "scale.json"
    assert out.with_suffix(".png").stat().st_size > 0
    cases = json.loads(out.read_text())["cases"]
    assert [(case["chips"], case["fsdp"]) for case in cases] == [(1, 1), (4, 1), (4, 2)]
    alone, data, fsdp = cases
    for part in ("tower", "batch", "rows at the taps", "statistics"):
        assert alone["memory"][part] == data["memory"][part] > 0
    assert fsdp["memory"]["tower"] < data["memory"]["tower"]
    assert data["bytes received for an image"] == 0 < fsdp["bytes received for an image"]
    assert alone["flops of a device in a pass"] == 4 * data["flops of a device in a pass"] > 0
    # Half of four symmetric matrices of 64, in three int32 a number, to and from the other host.
    assert alone["bytes received once a pass"] == 0
    assert data["bytes received once a pass"] == 2 * 12 * 4 * 64 * 65 / 2 / 2
