"""What a pass needs on accelerators that are not here."""

import importlib.util
import json

import numpy as np
import pytest

from jax_unlearn.cli import main
from jax_unlearn.models.qwen3_vision import VisionConfig
from jax_unlearn.plan import compile_pass, find_chips, flops, memory_of, plan

# The towers of Qwen3-VL 2B and 4B, and of 8B and larger ones.
TOWERS = {
    "24 x 1024": (24, 1024, 4096, 16, 2048),
    "27 x 1152": (27, 1152, 4304, 16, 4096),
}
KERNELS = {"v5e:2x2": ("splash", "xla"), "v5p:2x2x4": ("splash",), "h100:8": ("triton", "xla")}


def tower(name, kernel, dtype="bfloat16"):
    depth, width, inner, heads, out = TOWERS[name]
    return VisionConfig(
        depth, width, inner, heads, out, 2304, (5, 11, 17), dtype=dtype, attention=kernel
    )


def test_flops_are_those_of_the_products():
    """By hand: two blocks of width 8, MLP 16, patches of 3 · 2 · 4, one Merger."""
    config = VisionConfig(2, 8, 16, 2, 8, 4, (), patch_size=2)
    block = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 10 * 8
    assert flops(config, 10) == 2 * 10 * (2 * block + 24 * 8 + 32 * 32 // 4)


@pytest.mark.parametrize("text", ["v5e", "x9:2x2", ":", "tpu"])
def test_unknown_chips_are_one_line(text, tiny_dir, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tiny_dir), "--plan", text])
    assert caught.value.code == 2
    assert f"--plan {text}: must be KIND:SHAPE" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_compiler_that_is_not_installed_is_one_line(tiny_dir, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tiny_dir), "--plan", "v5e:2x2"])
    assert caught.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("jax-unlearn: ")]
    assert "pip install 'jax-unlearn[aot]'" in line


@pytest.mark.aot
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(("chips", "kernel"), [(c, k) for c, ks in KERNELS.items() for k in ks])
def test_the_tower_compiles_and_fits(chips, kernel, name):
    found = find_chips(chips)
    program = compile_pass(tower(name, kernel), found, rows=2, length=4096)
    assert 0 < sum(memory_of(program).values()) < found.memory
    # No device needs anything of another's.
    text = program.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))


@pytest.mark.aot
def test_a_plan_says_the_largest_batch(tiny_dir, capsys):
    main(["inspect", str(tiny_dir), "--plan", "h100:2", "--json"])
    facts = json.loads(capsys.readouterr().out)["on h100:2 in bfloat16"]
    assert facts["devices"] == 2
    assert facts["largest batch of a device in patches"] % 4096 == 0


@pytest.mark.aot
def test_twice_the_batch_takes_more_than_its_share_of_the_taps():
    chips = find_chips("v5e:2x2")
    config = tower("24 x 1024", "splash")
    found = plan(config, chips)
    rows = found["largest batch of a device in patches"] // 4096
    assert rows == 1 << int(np.log2(rows))
    assert sum(found["its memory in MiB"].values()) * 2**20 < chips.memory
