"""Towers whose Mergers are one Linear each: read from the keys, adapted, exported, merged."""

import json
import shutil
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_model

import porting
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.inspect.checkpoint_facts import inspect
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from porting import CheckpointError, load_peft, save_peft
from porting.peft import CONFIG
from porting.qwen3_vision import describe, load_vision_tower
from tests import tiny

GRID = np.array([[1, 4, 6], [3, 2, 8]])
WIDTH, E = tiny.VISION["hidden_size"], tiny.VISION["out_hidden_size"]
FC1 = tiny.random_adapter({"merger.linear_fc1": (4 * WIDTH, 4 * WIDTH)})


def plain_linear():
    """A merge of 1: torch's Linear in place of Hugging Face's Merger, and nothing else."""
    model = tiny.model(tiny.config(spatial_merge_size=1, deepstack_visual_indexes=[]))
    model.model.visual.merger = torch.nn.Linear(WIDTH, E).requires_grad_(False)
    return model


def linears_of_joined_patches(family):
    """A merge of 2, and the DeepStack mergers too; `hf_features` joins the patches."""
    model = tiny.model(tiny.family_config(family))
    visual = tiny.tower_of(model)
    visual.merger = torch.nn.Linear(4 * WIDTH, E)
    deepstack = visual.deepstack_merger_list
    for i in range(len(deepstack)):
        deepstack[i] = torch.nn.Linear(4 * WIDTH, E)
    return model.requires_grad_(False)


DEEPSTACK = ["merger", "deepstack_merger_list.0", "deepstack_merger_list.1"]
OMNI = ["merger", "merger_list.0", "merger_list.1"]
# How to make the model; prefix of its keys; the tower's path in it; its names for the Mergers.
CASES = {
    "merge of 1": (plain_linear, "model.visual.", "model.visual.", ["merger"]),
    "merge of 2 and DeepStack": (
        lambda: linears_of_joined_patches("qwen3_vl"),
        "model.visual.",
        "model.visual.",
        DEEPSTACK,
    ),
    "Qwen3-Omni": (
        lambda: linears_of_joined_patches("qwen3_omni_moe"),
        "thinker.visual.",
        "thinker.model.visual.",
        OMNI,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    make, keys, live, own = CASES[request.param]
    model, path = make(), tmp_path_factory.mktemp("single") / "checkpoint"
    model.save_pretrained(path)
    tower = load_vision_tower(path)
    names = [f"{merger}.linear_fc2" for merger in DEEPSTACK[: len(own)]]
    adapter = tiny.random_adapter({name: tower.linear(name)[0].shape for name in names})
    return SimpleNamespace(**locals())


def features(tower, adapter=None):
    return tower(tiny.images(GRID), GRID, adapter=adapter)


def hf_features(visual):
    """Hugging Face's tower. Ours, not theirs, is the step that joins the patches for the Linear."""

    def join(module, inputs):
        return inputs[0].reshape(-1, module.in_features)

    mergers = (visual.merger, *getattr(visual, "deepstack_merger_list", ()))
    hooks = [merger.register_forward_pre_hook(join) for merger in mergers]
    try:
        return tiny.tower_outputs(visual, tiny.images(GRID), GRID)
    finally:
        for hook in hooks:
            hook.remove()


def test_every_feature(case):
    tiny.same_features(features(case.tower), hf_features(tiny.tower_of(case.model)))


def test_the_keys_tell(case, tiny_tower):
    keys = {key for key in tiny.tensors(case.path) if "merger" in key}
    assert keys == {f"{case.keys}{own}.{part}" for own in case.own for part in ("weight", "bias")}
    config = describe(case.path).config
    assert config == case.tower.config
    assert config.single_linear
    assert config.linears == tuple(case.names)
    assert not tiny_tower.config.single_linear


def test_taps_and_linears(case):
    out = features(case.tower)
    assert set(out.taps) == set(case.names)
    visual = tiny.tower_of(case.model)
    for name, own in zip(case.names, case.own, strict=True):
        weight, bias = case.tower.linear(name)
        np.testing.assert_array_equal(weight, visual.get_submodule(own).weight)
        np.testing.assert_array_equal(bias, visual.get_submodule(own).bias)
        output = np.asarray(out.taps[name]) @ weight.T + bias
        tiny.close_to_largest(output, out.outputs[name.removesuffix(".linear_fc2")])
    joined = np.asarray(out.last_hidden_state).reshape(len(out.taps["merger.linear_fc2"]), -1)
    np.testing.assert_array_equal(out.taps["merger.linear_fc2"], joined)


def test_an_adapter_in_the_real_peft(case, tmp_path):
    save_peft(case.adapter, tmp_path / "a", base_model_name_or_path=case.path)
    targets = json.loads((tmp_path / "a" / CONFIG).read_text())["target_modules"]
    assert targets == sorted(case.live + own for own in case.own)
    model = PeftModel.from_pretrained(deepcopy(case.model), tmp_path / "a")
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {f"base_model.model.{target}" for target in targets}
    visual = model.get_submodule(f"base_model.model.{case.live}".rstrip("."))
    tiny.same_features(features(case.tower, case.adapter), hf_features(visual))

    again = load_peft(tmp_path / "a")
    assert again.pairs.keys() == case.adapter.pairs.keys()
    for name, pair in case.adapter.pairs.items():
        np.testing.assert_array_equal(again.pairs[name].b, pair.b)


def test_the_merged_checkpoint_and_its_undo(case, tmp_path):
    porting.merge_checkpoint(case.adapter, case.path, tmp_path / "merged", undo=tmp_path / "undo")
    ours = features(load_vision_tower(tmp_path / "merged"))
    # No class of transformers has such a tower, so its weights go into ours by hand.
    visual = deepcopy(tiny.tower_of(case.model))
    prefix, tensors = case.keys, tiny.tensors(tmp_path / "merged")
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if prefix in k}
    visual.load_state_dict(state, strict=True)
    tiny.same_features(ours, hf_features(visual))
    tiny.same_features(features(case.tower, case.adapter), hf_features(visual))

    porting.unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "back")
    for file in case.path.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_inspect(case):
    facts, side = inspect(case.path), case.tower.config.spatial_merge_size
    layers = [2, 0, 2][: len(case.own)]
    assert facts["mergers"] == {
        f"{case.live}{own}": f"blocks.{layer} → {side}×{side} merge → one Linear"
        for own, layer in zip(case.own, layers, strict=True)
    }
    width = WIDTH * side**2
    assert facts["adaptable Linears"] == dict.fromkeys(case.names, f"{width} → {E}")


def test_there_is_no_other_linear(case, tmp_path):
    with pytest.raises(ValueError, match=r"no Linear merger\.linear_fc1"):
        features(case.tower, FC1)
    with pytest.raises(UserError, match="each Merger is one Linear, linear_fc2"):
        save_peft(FC1, tmp_path / "a", base_model_name_or_path=case.path)
    with pytest.raises(CheckpointError, match="each Merger is one Linear, linear_fc2"):
        porting.merge_checkpoint(FC1, case.path, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merger.bias": None}, "merger.bias is missing"),
        ({"merger.weight": np.ones((E, 3), np.float32)}, f"expected [{E}, {WIDTH}]"),
        ({"merger.norm.weight": np.ones(WIDTH, np.float32)}, "merger.norm.weight is unexpected"),
    ],
    ids=["no bias", "shape", "norm"],
)
def test_faults(changes, message, tmp_path):
    plain_linear().save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file) | {f"model.visual.{key}": x for key, x in changes.items()}
    save_file({key: x for key, x in tensors.items() if x is not None}, file)
    with pytest.raises(CheckpointError) as caught:
        load_vision_tower(tmp_path / "m")
    assert message in str(caught.value)


def test_mergers_of_two_kinds_are_a_fault(tmp_path):
    model = tiny.model(tiny.config())
    model.model.visual.merger = torch.nn.Linear(4 * WIDTH, E)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        load_vision_tower(tmp_path / "m")
    faults = caught.value.faults
    assert "model.visual.deepstack_merger_list.0.weight is missing" in faults
    assert "model.visual.deepstack_merger_list.1.norm.bias is unexpected" in faults


def test_run_and_export(tmp_path):
    model = linears_of_joined_patches("qwen3_vl")
    model.save_pretrained(tmp_path / "checkpoint")
    tiny.save_processor(tmp_path / "checkpoint", 256, 1024)
    for side, name in (("forget", "red triangle"), ("preserve", "blue circle")):
        (tmp_path / side / name).mkdir(parents=True)
        for file in sorted((ASSETS / "images" / "train" / name).iterdir())[:6]:
            shutil.copy(file, tmp_path / side / name)
    options = {name: tmp_path / name for name in ("checkpoint", "forget", "preserve")}
    options |= {"out": tmp_path / "run", "rank": 2}
    main(["run", *(str(part) for key, value in options.items() for part in (f"--{key}", value))])
    command = ["export", tmp_path / "run", "--format", "merged", "--out", tmp_path / "merged"]
    main([str(part) for part in command])
    adapter = load_peft(tmp_path / "run" / "adapter")
    load_model(model, tmp_path / "merged" / "model.safetensors")
    ours = features(load_vision_tower(tmp_path / "checkpoint"), adapter)
    tiny.same_features(ours, hf_features(model.model.visual))
