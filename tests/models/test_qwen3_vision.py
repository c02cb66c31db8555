"""Parity with Hugging Face's tower: each part on the same input, then the whole."""

from dataclasses import replace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_unlearn.models.qwen3_vision.blocks import rope_angles
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.packing import PackedPatches, frame_sizes, pack
from jax_unlearn.models.qwen3_vision.tower import forward, gathered, unpack
from porting import load_vision_tower
from porting.qwen3_vision import abstract_tower
from tests import tiny
from tests.tiny import close_to_largest, same_features

PART = {"rtol": 1e-3, "atol": 1e-5}
MERGERS = ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")


def saved_tower(model, path, dtype="float32"):
    model.save_pretrained(path)
    return load_vision_tower(path, dtype)


def leaves(features):
    return jax.tree.leaves(features)


def packed_rows(tower, grid, pixels):
    """A row for each frame, and the place of each patch."""
    config, sizes = tower.config, frame_sizes(grid)
    options = {"merge": config.spatial_merge_size, "side": config.table_side}
    return pack(pixels, grid, rows=len(sizes), length=max(sizes), **options)


@pytest.fixture(scope="module")
def pixels():
    return tiny.images()


@pytest.fixture(scope="module")
def captured(tiny_model, pixels):
    """Inputs and outputs of Hugging Face's blocks, Mergers, and Mergers' Linears."""
    visual = tiny_model.model.visual
    parts = {f"blocks.{i}": block for i, block in enumerate(visual.blocks)}
    parts |= {name: visual.get_submodule(name) for name in MERGERS}
    for name in MERGERS:
        for linear in ("linear_fc1", "linear_fc2"):
            parts[f"{name}.{linear}"] = visual.get_submodule(f"{name}.{linear}")
    return tiny.captured(parts, visual, pixels, tiny.GRID)


def unpacked(features, slots, config):
    """The features of one batch that holds the whole input."""
    return unpack([features], [slots], [np.arange(len(slots))], config)


def module_of(tower, merger):
    index = merger.rpartition(".")[2]
    return tower.deepstack_merger_list[int(index)] if index.isdigit() else tower.merger


def merged(merger, x):
    """A Merger's outputs."""
    return jax.jit(lambda x: merger(x, {}, 0.0)[0])(x[None])[0]


@pytest.mark.parametrize("layer", range(3))
def test_block_on_the_same_input(tiny_tower, captured, pixels, layer):
    packed, slots = packed_rows(tiny_tower, tiny.GRID, pixels)
    graphdef, stack = nnx.split(tiny_tower.blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda x: np.asarray(x)[layer], stack))
    x, y = captured[f"blocks.{layer}"]
    rows = np.zeros((*packed.patches.shape[:2], x.shape[-1]), np.float32)
    rows.reshape(-1, x.shape[-1])[slots] = x

    @jax.jit
    def outputs(rows, coordinates, filled):
        return block(rows, rope_angles(coordinates, 16, tiny_tower.config.rope_theta), filled)

    with jax.default_matmul_precision("highest"):
        ours = np.asarray(outputs(rows, packed.coordinates, packed.filled))
    np.testing.assert_allclose(ours.reshape(-1, x.shape[-1])[slots], y, **PART)


@pytest.mark.parametrize("merger", MERGERS)
def test_merger_on_the_same_input(tiny_tower, captured, merger):
    x, y = captured[merger]
    with jax.default_matmul_precision("highest"):
        ours = merged(module_of(tiny_tower, merger), x)
    np.testing.assert_allclose(ours, y, **PART)


@pytest.mark.parametrize("merger", MERGERS)
def test_the_merger_test_notices_tanh(tiny_tower, captured, merger, monkeypatch):
    x, y = captured[merger]
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=True))
    assert not np.allclose(merged(module_of(tiny_tower, merger), x), y, **PART)


@pytest.mark.parametrize("merger", MERGERS)
def test_norm_of_a_large_mean(tiny_model, tiny_tower, merger):
    """Where E[x²] − E[x]² would cancel."""
    theirs = tiny_model.model.visual.get_submodule(merger).norm
    x = tiny.images(patch_dim=theirs.weight.shape[0]) + np.float32(1000)
    ours = jax.jit(lambda x: module_of(tiny_tower, merger).norm(x))(x)
    np.testing.assert_allclose(ours, theirs(torch.from_numpy(x)), rtol=1e-3, atol=1e-3)


def test_whole_tower(tiny_model, tiny_tower, pixels):
    theirs = tiny.tower_outputs(tiny_model.model.visual, pixels, tiny.GRID)
    same_features(tiny_tower(pixels, tiny.GRID), theirs)


@pytest.mark.parametrize("merger", MERGERS)
@pytest.mark.parametrize("linear", ["linear_fc1", "linear_fc2"])
def test_taps_are_the_inputs_of_the_linears(tiny_tower, captured, pixels, merger, linear):
    taps = tiny_tower(pixels, tiny.GRID).taps
    assert set(taps) == {f"{m}.linear_fc{i}" for m in MERGERS for i in (1, 2)}
    close_to_largest(taps[f"{merger}.{linear}"], captured[f"{merger}.{linear}"][0])


@pytest.mark.parametrize("name", [f"{m}.linear_fc{i}" for m in MERGERS for i in (1, 2)])
def test_linear_is_torchs(tiny_model, tiny_tower, name):
    theirs = tiny_model.model.visual.get_submodule(name)
    weight, bias = tiny_tower.linear(name)
    np.testing.assert_array_equal(weight, theirs.weight.numpy())
    np.testing.assert_array_equal(bias, theirs.bias.numpy())


@pytest.mark.parametrize("indexes", [[2, 0], [1], []], ids=str)
def test_deepstack_follows_the_config(indexes, tmp_path, pixels):
    model = tiny.model(tiny.config(deepstack_visual_indexes=indexes))
    theirs = tiny.tower_outputs(model.model.visual, pixels, tiny.GRID)
    same_features(saved_tower(model, tmp_path / "m")(pixels, tiny.GRID), theirs)


def test_rope_theta_comes_from_the_config(tiny_tower, tmp_path, pixels):
    model = tiny.model(tiny.config(rope_parameters={"rope_type": "axial", "rope_theta": 50.0}))
    theirs = tiny.tower_outputs(model.model.visual, pixels, tiny.GRID)
    ours = saved_tower(model, tmp_path / "m")(pixels, tiny.GRID)
    same_features(ours, theirs)
    usual = tiny_tower(pixels, tiny.GRID).last_hidden_state
    assert np.abs(np.asarray(ours.last_hidden_state - usual)).max() > 1e-2


@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_the_blocks_activation_comes_from_the_config(act, tmp_path, pixels):
    model = tiny.model(tiny.config(hidden_act=act))
    theirs = tiny.tower_outputs(model.model.visual, pixels, tiny.GRID)
    same_features(saved_tower(model, tmp_path / "m")(pixels, tiny.GRID), theirs)


@pytest.mark.parametrize("merge", [1, 2, 3, 4])
def test_patch_and_merge_sizes_come_from_the_config(merge, tmp_path):
    shape = {"patch_size": 2, "temporal_patch_size": 1, "in_channels": 1}
    model = tiny.model(tiny.config(spatial_merge_size=merge, **shape))
    grid = np.array([[1, 2, 3], [2, 2, 1]]) * [1, merge, merge]
    pixels = tiny.images(grid, patch_dim=4)
    theirs = tiny.tower_outputs(model.model.visual, pixels, grid)
    same_features(saved_tower(model, tmp_path / "m")(pixels, grid), theirs)


def test_frames_do_not_see_each_other(tiny_tower):
    video, frame = np.array([[2, 6, 4]]), np.array([[1, 6, 4]])
    pixels = tiny.images(video)
    both = tiny_tower(pixels, video)
    for i, part in enumerate(np.split(pixels, 2)):
        alone = tiny_tower(part, frame)
        for a, b in zip(leaves(both), leaves(alone), strict=True):
            close_to_largest(np.split(np.asarray(a), 2)[i], b, 1e-5)


def test_frames_that_share_a_row_would_differ(tiny_tower):
    grid = np.array([[2, 6, 4]])
    packed, _ = packed_rows(tiny_tower, grid, tiny.images(grid))
    graphdef, state = nnx.split(tiny_tower)
    right = np.asarray(forward(graphdef, state, packed, None).pooler_output)
    one_row = {name: x.reshape(1, -1, *x.shape[2:]) for name, x in vars(packed).items()}
    mixed = PackedPatches(**one_row | {"filled": packed.filled.sum(keepdims=True)})
    wrong = np.asarray(forward(graphdef, state, mixed, None).pooler_output)
    assert np.abs(right.reshape(wrong.shape) - wrong).max() > 1e-2


def test_padding_changes_nothing(tiny_tower, pixels):
    config = tiny_tower.config
    packed, slots = pack(pixels, tiny.GRID, merge=2, side=config.table_side, rows=4, length=96)
    padding = np.arange(96) >= packed.filled[:, None]
    garbage = replace(
        packed,
        patches=np.where(padding[..., None], np.float32(1e4), packed.patches),
        coordinates=np.where(padding[..., None], np.int32(7), packed.coordinates),
        table_weight=np.where(padding[..., None], np.float32(1e4), packed.table_weight),
    )
    graphdef, state = nnx.split(tiny_tower)
    clean = unpacked(forward(graphdef, state, packed, None), slots, config)
    dirty = unpacked(forward(graphdef, state, garbage, None), slots, config)
    for a, b in zip(leaves(clean), leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_image_has_the_same_features_in_any_company(tiny_tower, pixels):
    grid, config = tiny.GRID, tiny_tower.config
    together = tiny_tower(pixels, grid)
    ends = np.cumsum(grid.prod(axis=1))
    for i, (end, size) in enumerate(zip(ends, grid.prod(axis=1), strict=True)):
        part = slice(end - size, end)
        alone = tiny_tower(pixels[part], grid[i : i + 1])
        merged = slice(part.start // 4, part.stop // 4)
        close_to_largest(alone.last_hidden_state, together.last_hidden_state[part], 1e-5)
        for name in config.mergers:
            close_to_largest(alone.outputs[name], together.outputs[name][merged], 1e-5)


@pytest.mark.parametrize("kernel", ["tiled", "xla"])
@pytest.mark.parametrize(("rows", "length"), [(4, 24), (5, 40), (8, 72), (4, 512)])
def test_an_image_has_the_same_features_in_any_bucket(tiny_tower, pixels, rows, length, kernel):
    config = replace(tiny_tower.config, attention=kernel)
    graphdef, _ = nnx.split(abstract_tower(config))
    state = nnx.split(tiny_tower)[1]
    packed, slots = pack(
        pixels, tiny.GRID, merge=2, side=config.table_side, rows=rows, length=length
    )
    usual = tiny_tower(pixels, tiny.GRID)
    other = unpacked(forward(graphdef, state, packed, None), slots, config)
    for a, b in zip(leaves(usual), leaves(other), strict=True):
        close_to_largest(a, b, 1e-5)


def test_frames_of_every_size_come_back_in_order(tiny_tower, monkeypatch):
    """In a batch for each length of the rows, as in a tower for which padding costs more."""
    grid = np.array([[1, 8, 10], [2, 4, 6], [1, 14, 10], [1, 8, 8], [1, 4, 4]])
    pixels = tiny.images(grid)
    usual = tiny_tower(pixels, grid)
    forward.on(jax.default_backend()).clear_cache()
    monkeypatch.setattr(VisionConfig, "padding_for_shape", 0)
    apart = tiny_tower(pixels, grid)
    assert forward.compilations() == 5  # rows of 16, 32, 64, 80 and 144
    for a, b in zip(leaves(usual), leaves(apart), strict=True):
        close_to_largest(a, b, 1e-5)


def test_an_adapter_is_the_change_of_the_weight(tiny_tower, tmp_path, tiny_model, pixels):
    adapter = tiny.adapter()
    ours = tiny_tower(pixels, tiny.GRID, adapter=adapter)
    model = tiny.model(tiny_model.config)
    for name, pair in adapter.pairs.items():
        change = adapter.scale * (pair.b @ pair.a)
        model.model.visual.get_submodule(name).weight += torch.from_numpy(change)
    same_features(ours, tiny.tower_outputs(model.model.visual, pixels, tiny.GRID))
    base = tiny_tower(pixels, tiny.GRID)
    np.testing.assert_array_equal(ours.last_hidden_state, base.last_hidden_state)
    assert all(np.abs(np.asarray(ours.outputs[m] - base.outputs[m])).max() > 1e-2 for m in MERGERS)


def test_bfloat16_is_as_close_as_torchs(tiny_model, tiny_dir, pixels):
    exact = tiny.tower_outputs(tiny_model.model.visual, pixels, tiny.GRID)
    half = tiny.model(tiny_model.config).to(torch.bfloat16)
    theirs = tiny.tower_outputs(half.model.visual, pixels, tiny.GRID)
    ours = load_vision_tower(tiny_dir, "bfloat16")(pixels, tiny.GRID)
    assert ours.pooler_output.dtype == jnp.bfloat16
    for name in ("last_hidden_state", "pooler_output"):
        right = getattr(exact, name).numpy()
        error = np.linalg.norm(np.asarray(getattr(ours, name), np.float32) - right)
        allowed = np.linalg.norm(getattr(theirs, name).float().numpy() - right)
        assert error <= 1.5 * allowed
        assert allowed < 0.1 * np.linalg.norm(right)


def test_the_gradient_by_the_pixels_is_torchs(tiny_model, tiny_tower):
    """In a row that is longer than a block of the attention."""
    grid = np.array([[1, 16, 18]])
    pixels = tiny.images(grid)
    weight = np.random.default_rng(5).normal(size=(72, 24)).astype(np.float32)
    theirs = torch.from_numpy(pixels).requires_grad_()
    out = tiny_model.model.visual(theirs, grid_thw=torch.from_numpy(grid)).pooler_output
    (torch.cat(list(out)).reshape(72, 24) * torch.from_numpy(weight)).sum().backward()
    ours = jax.grad(lambda p: (tiny_tower(p, grid).pooler_output * weight).sum())(pixels)
    close_to_largest(ours, theirs.grad, 1e-4)


def test_arguments_are_converted_or_named(tiny_tower, pixels):
    usual = tiny_tower(pixels, tiny.GRID)
    other = tiny_tower(torch.from_numpy(pixels), torch.from_numpy(np.asarray(tiny.GRID)))
    for one, same in zip(leaves(usual), leaves(other), strict=True):
        np.testing.assert_array_equal(one, same)
    with pytest.raises(ValueError, match=r"grid_thw has shape \[3\] and dtype int64"):
        tiny_tower(pixels, np.array([1, 4, 6]))
    with pytest.raises(ValueError, match=r"pixel_values has shape \[4, 95\], expected"):
        tiny_tower(np.zeros((4, 95), np.float32), np.array([[1, 2, 2]]))


def test_the_tower_works_inside_transformations(tiny_tower, pixels):
    adapter, grid = tiny.adapter(), tiny.GRID
    usual = tiny_tower(pixels, grid, adapter=adapter)
    by_jax = jax.jit(lambda p, a: tiny_tower(p, grid, adapter=a))(pixels, adapter)
    by_flax = nnx.jit(lambda tower, p: tower(p, grid, adapter=adapter))(tiny_tower, pixels)
    without_arguments = jax.jit(lambda: tiny_tower(pixels, grid, adapter=adapter))()
    for other in (by_jax, by_flax, without_arguments):
        for one, same in zip(leaves(usual), leaves(other), strict=True):
            close_to_largest(same, one, 1e-5)
    by_adapter = jax.grad(lambda a: (tiny_tower(pixels, grid, adapter=a).pooler_output ** 2).sum())
    change = by_adapter(adapter).pairs["merger.linear_fc2"]
    assert all(np.abs(part).max() > 0 for part in (change.a, change.b))
    with pytest.raises(ValueError, match="grid_thw is traced, and it determines shapes"):
        jax.jit(tiny_tower)(pixels, grid)


def test_one_bucket_compiles_once(tiny_tower):
    grids = [[[1, 4, 6]], [[1, 6, 4]], [[1, 4, 8]], [[1, 2, 14]]]
    forward.on(jax.default_backend()).clear_cache()
    for seed, grid in enumerate(np.array(grids)):
        tiny_tower(tiny.images(grid, seed=seed), grid)
    assert forward.compilations() == 1
    larger = np.array([[1, 16, 18]])
    tiny_tower(tiny.images(larger), larger)
    assert forward.compilations() == 2


def test_images_of_another_size_compile_one_small_program(tiny_tower):
    """Which takes their features out of the padded rows."""
    compiled = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    tiny_tower(tiny.images(np.array([[1, 4, 6]])), np.array([[1, 4, 6]]))
    gathered.clear_cache()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # A size that no other test has, so that nothing else is compiled for it yet.
        tiny_tower(tiny.images(np.array([[1, 2, 10]])), np.array([[1, 2, 10]]))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1


def test_the_program_does_not_grow_with_depth(tiny_tower):
    grid = np.array([[1, 4, 6]])
    packed, _ = packed_rows(tiny_tower, grid, tiny.images(grid))

    def program(depth):
        config = replace(tiny_tower.config, depth=depth, deepstack_indexes=(0, 1))
        graphdef, state = nnx.split(abstract_tower(config))
        jaxpr = jax.make_jaxpr(forward.function, static_argnums=0)(graphdef, state, packed, None)
        return str(jaxpr).count("\n")

    assert program(2) == program(8)


@pytest.mark.parametrize(
    ("grid", "rows"), [([[1, 4, 6]], 20), ([[1, 3, 4]], 12)], ids=["count", "multiple"]
)
def test_a_grid_of_other_patches_is_an_error(tiny_tower, grid, rows):
    with pytest.raises(ValueError, match="patches"):
        tiny_tower(np.zeros((rows, 96), np.float32), np.array(grid))
