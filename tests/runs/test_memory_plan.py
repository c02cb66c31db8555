"""What a pass needs on accelerators that are not here."""

import importlib.util
import json
from dataclasses import replace

import jax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.scale.compiled import (
    TOWERS,
    collectives,
    compile_statistics,
    compile_training,
    tower,
)
from jax_unlearn.models.attention import Kernel
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.packing import PackedPatches
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.inspect.accelerators import (
    GIB,
    MEMORY,
    SHARE_VARIABLES,
    Chips,
    find_chips,
    gpu_share,
)
from jax_unlearn.runs.inspect.memory_plan import (
    MOST_ROWS,
    batch_on,
    compile_pass,
    fitting,
    flops,
    memory_of,
    plan,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.mesh import make_mesh
from porting.qwen3_vision import abstract_tower

# Each tower with each attention that there is for the platform, and some with the blocks' weights
# shared.
ATTENTION: dict[str, tuple[Kernel, ...]] = {
    "v5e:2x2": ("xla", "splash"),
    "v5p:2x2x4": ("xla", "splash"),
    "h100:8": ("xla", "triton"),
}
SHARED = {
    ("v5e:2x2", "24x1024", "splash"): 2,
    ("v5p:2x2x4", "27x1152", "splash"): 4,
    ("h100:8", "27x1152", "triton"): 8,
}
PASSES = [
    (name, layers, kernel)
    for name, kernels in ATTENTION.items()
    for layers in TOWERS
    for kernel in kernels
]
SMALL = VisionConfig(2, 8, 16, 2, 8, 4, (), patch_size=2)


def test_flops_are_those_of_the_products():
    """By hand: two blocks of width 8, MLP 16, patches of 3 · 2 · 4, one Merger."""
    block = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 10 * 8
    assert flops(SMALL, 10) == 2 * 10 * (2 * block + 24 * 8 + 32 * 32 // 4)


@pytest.mark.parametrize("text", ["v5e", "x9:2x2", ":", "tpu"])
def test_unknown_chips_are_one_line(text, tiny_dir, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tiny_dir), "--plan", text])
    assert caught.value.code == 2
    assert f"--plan {text}: must be KIND:SHAPE" in capsys.readouterr().err


@pytest.mark.parametrize("variable", SHARE_VARIABLES)
def test_a_plan_for_a_gpu_reckons_with_the_share_that_jax_takes(variable, monkeypatch):
    for name in SHARE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert gpu_share() == 0.75
    monkeypatch.setenv(variable, "0.9")
    assert gpu_share() == 0.9
    for text in ("0", "1.5", "most"):
        monkeypatch.setenv(variable, text)
        with pytest.raises(UserError, match=f"{variable}={text}: must be a number up to 1"):
            gpu_share()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_compiler_that_is_not_installed_is_one_line(tiny_dir, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tiny_dir), "--plan", "v5e:2x2"])
    assert caught.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("jax-unlearn: ")]
    assert "pip install 'jax-unlearn[aot]'" in line


def fits(program, chips):
    return 0 < sum(memory_of(program, 0).values()) < chips.memory


def kinds(program, least=0):
    """Of the collectives that give at least so many bytes."""
    return {one.kind for one in collectives(program) if one.size >= least}


# Fewer bytes than any matrix of a layer has. The TPU's compiler gathers the vectors, whose shares
# are no whole tiles, by one all-reduce.
MATRIX = 2**20


@pytest.mark.aot
@pytest.mark.parametrize(("name", "layers", "kernel"), PASSES)
def test_the_tower_compiles_and_fits(name, layers, kernel):
    fsdp = SHARED.get((name, layers, kernel), 1)
    chips, config = find_chips(name, fsdp), tower(layers, kernel)
    program = compile_pass(config, chips, rows=2, length=4096)
    assert fits(program, chips)
    # No device needs anything of another's but its share of the weights.
    assert kinds(program, MATRIX) == ({"all-gather"} if fsdp > 1 else set())
    assert kinds(program) <= ({"all-gather", "all-reduce"} if fsdp > 1 else set())


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x4", "h100:8"])
def test_statistics_are_summed_without_a_word_to_others(name):
    chips = find_chips(name)
    program = compile_statistics(4608, 2048, chips)
    assert fits(program, chips)
    assert not collectives(program)
    # The sums are given back in the memory that they came in.
    assert program.memory_analysis().alias_size_in_bytes >= 2 * 4 * 4608**2


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "d_in", "e"),
    [("v5e:2x2", 4608, 4096), ("v5p:2x2x4", 4096, 2048), ("h100:8", 4608, 4096)],
)
def test_training_adds_up_gradients_and_no_more(name, d_in, e):
    chips = find_chips(name)
    program = compile_training(d_in, e, rank=5, epochs=100, chips=chips)
    assert fits(program, chips)
    assert kinds(program) == {"all-reduce"}
    # Of an epoch the gradients of A and B, the forget norm, and what the preserve norm is made of.
    size = sum(one.size for one in collectives(program) if one.repeated)
    assert size < 2 * 4 * 5 * (2 * d_in + e)
    assert all(place.is_fully_replicated for place in jax.tree.leaves(program.output_shardings))


@pytest.mark.aot
@pytest.mark.parametrize(("name", "kernel"), [("v5e:2x2", "splash"), ("h100:8", "triton")])
def test_the_gradient_by_the_pixels_compiles(name, kernel):
    """Through the Pallas kernels, in bfloat16 as on those chips."""
    chips, config = find_chips(name), tower("24x1024", kernel)
    graphdef, state = nnx.split(abstract_tower(replace(config, depth=2, deepstack_indexes=())))
    one = Mesh(chips.mesh.devices.ravel()[:1], ("data",))
    place = NamedSharding(one, PartitionSpec())
    state, batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (state, batch_on(config, chips, 1, 1024)),
    )

    def total(patches, state, rest):
        packed = PackedPatches(patches, *rest)
        return nnx.merge(graphdef, state).features(packed, None).pooler_output.sum()

    program = jax.jit(jax.grad(total)).lower(batch[0], state, batch[1:]).compile()
    assert fits(program, chips)


@pytest.mark.aot
def test_fsdp_must_divide_the_devices():
    chips = find_chips("h100:8", 2)
    assert chips.mesh.shape == {"data": 4, "fsdp": 2}
    assert chips.memory == int(gpu_share() * MEMORY["h100"] * GIB)
    for fsdp in (0, 3):
        with pytest.raises(UserError, match=f"--fsdp {fsdp}: must divide the 8 devices"):
            find_chips("h100:8", fsdp)


# One of four that the known parts would allow; not that one; none.
@pytest.mark.parametrize(("mib", "rows"), [(7, 1), (2, 0), (1, 0)])
def test_no_larger_batch_would_fit(mib, rows):
    """On a CPU, whose compiler does not look at its memory, nor does CUDA's."""
    chips = Chips("a CPU", make_mesh("data=1"), mib * 2**20, "xla")
    if not rows:
        with pytest.raises(UserError, match="not even one row of 4096 patches fits"):
            plan(SMALL, chips)
        return
    found = plan(SMALL, chips)
    assert found["largest batch of a device in patches"] == rows * 4096
    assert sum(found["its memory in MiB"].values()) <= mib
    assert not fitting(SMALL, chips, 2 * rows)


@pytest.mark.aot
def test_a_plan_says_the_largest_batch(tiny_dir, capsys):
    main(["inspect", str(tiny_dir), "--plan", "h100:2", "--json"])
    facts = json.loads(capsys.readouterr().out)["on h100:2 in bfloat16"]
    assert facts["devices"] == 2
    # A small tower.
    assert facts["largest batch of a device in patches"] == MOST_ROWS * 4096


@pytest.mark.aot
def test_the_largest_batch_fits():
    chips = find_chips("v5e:1x1")
    config = replace(tower("24x1024", "splash"), depth=2, deepstack_indexes=())
    found = plan(config, chips)
    assert found["largest batch of a device in patches"] > 4096
    memory = found["its memory in MiB"]
    assert min(memory.values()) > 0
    assert sum(memory.values()) * 2**20 <= chips.memory
    # Of a patch two blocks: attention's Linears, MLP, attention; of a merge block one Merger.
    block = 4 * 1024**2 + 2 * 1024 * 4096 + 2 * 4096 * 1024
    image = 2 * 4096 * (2 * block + 1536 * 1024) + 2 * 1024 * 4096**2
    assert found["TFLOP of 1000 images of 4096 patches"] == round(1000 * image / 1e12, 1)
    # Two numbers of float32 for each of the Gram matrix.
    assert memory["statistics of tokens"] == pytest.approx(2 * 4 * 4096**2 / 2**20, rel=1e-2)
    other = memory["batch"] + memory["rows at the taps"]
    assert memory["the other batch in flight"] == pytest.approx(other, abs=0.1)
