"""Every family with a Qwen3 ViT: Hugging Face's features, real adapters, merged checkpoints."""

import json
import shutil
import warnings
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel, set_peft_model_state_dict
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.inspect.checkpoint_facts import inspect
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from porting import CheckpointError, load_peft, save_peft
from porting.families import FAMILIES, linear_of_live_path
from porting.peft import CONFIG, WEIGHTS
from porting.qwen3_vision import describe, load_vision_tower
from tests import tiny

FULL = tuple(tiny.TEXTS)
GRID = np.array(tiny.GRIDS["image and video"])
CHOICES = {"fc1": ("linear_fc1",), "fc2": ("linear_fc2",), "both": ("linear_fc1", "linear_fc2")}

# Written out, so that a fault of the tables does not excuse itself.
LIVE = dict.fromkeys(FULL, "model.visual.") | {"qwen3_omni_moe": "thinker.model.visual."}
KEYS = dict.fromkeys(FULL, "model.visual.") | {"qwen3_omni_moe": "thinker.visual."}
OMNI_NAMES = {
    "merger.linear_fc1": "merger.mlp.0",
    "merger.linear_fc2": "merger.mlp.2",
    "deepstack_merger_list.0.linear_fc1": "merger_list.0.mlp.0",
    "deepstack_merger_list.0.linear_fc2": "merger_list.0.mlp.2",
    "deepstack_merger_list.1.linear_fc1": "merger_list.1.mlp.0",
    "deepstack_merger_list.1.linear_fc2": "merger_list.1.mlp.2",
}


def own_name(family, name):
    return OMNI_NAMES[name] if "omni" in family else name


def loaded(family, model, path):
    """A model, its checkpoint by `save_pretrained`, and our tower of that."""
    model.save_pretrained(path)
    return SimpleNamespace(
        family=family, model=model, path=path, tower=load_vision_tower(path), live=LIVE[family]
    )


@pytest.fixture(scope="module", params=FULL)
def case(request, tmp_path_factory):
    model = tiny.model(tiny.family_config(request.param))
    return loaded(request.param, model, tmp_path_factory.mktemp("family") / "checkpoint")


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    model = tiny.model(tiny.family_config("qwen3_omni_moe"))
    return loaded("qwen3_omni_moe", model, tmp_path_factory.mktemp("omni") / "checkpoint")


def adapter_of(tower, choice="both"):
    """Random a and b for the Linears of a choice, in every Merger."""
    names = [name for name in tower.config.linears if name.endswith(CHOICES[choice])]
    return tiny.random_adapter({name: tower.linear(name)[0].shape for name in names})


def with_peft(model, directory):
    """The real PEFT's model, without a warning of a key that it did not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT asks transformers for a property of an older name, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return PeftModel.from_pretrained(deepcopy(model), directory)


def adapted_modules(model):
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


def features(tower, adapter=None, grid=GRID):
    return tower(tiny.images(grid), grid, adapter=adapter)


def hf_features(visual, grid=GRID):
    return tiny.tower_outputs(visual, tiny.images(grid), grid)


@pytest.mark.parametrize("grid", tiny.GRIDS.values(), ids=tiny.GRIDS)
def test_every_feature(case, grid):
    grid = np.array(grid)
    ours = features(case.tower, grid=grid)
    tiny.same_features(ours, hf_features(tiny.tower_of(case.model), grid))
    assert len(ours.deepstack_features) == (2 if case.family in tiny.DEEPSTACK else 0)


def test_the_checkpoint_is_the_familys_own(case):
    """Hugging Face writes the keys and builds the modules that we say it does."""
    keys = tiny.tensors(case.path)
    modules = dict(case.model.named_modules())
    assert describe(case.path).model_type == case.family
    for name in case.tower.config.linears:
        own = own_name(case.family, name)
        assert f"{KEYS[case.family]}{own}.weight" in keys
        assert isinstance(modules[case.live + own], torch.nn.Linear)


@pytest.mark.parametrize("choice", CHOICES)
def test_an_adapter_in_the_real_peft(case, choice, tmp_path):
    adapter = adapter_of(case.tower, choice)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=case.path)
    model = with_peft(case.model, tmp_path / "a")

    paths = {case.live + own_name(case.family, name) for name in adapter.pairs}
    assert adapted_modules(model) == {f"base_model.model.{path}" for path in paths}
    saved = load_file(tmp_path / "a" / WEIGHTS)
    tensors = {key: torch.from_numpy(value) for key, value in saved.items()}
    result = set_peft_model_state_dict(model, tensors)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key] == []

    visual = model.get_submodule(f"base_model.model.{case.live}".rstrip("."))
    tiny.same_features(features(case.tower, adapter), hf_features(visual))
    base, changed = features(case.tower), features(case.tower, adapter)
    for name in case.tower.config.mergers:
        assert np.abs(np.asarray(base.outputs[name] - changed.outputs[name])).max() > 1e-2


def test_an_adapter_comes_back_by_our_names(case, tmp_path):
    adapter = adapter_of(case.tower)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=case.path)
    again = load_peft(tmp_path / "a")
    assert (again.alpha, again.rank) == (adapter.alpha, adapter.rank)
    assert again.pairs.keys() == adapter.pairs.keys() == set(case.tower.config.linears)
    for name, pair in adapter.pairs.items():
        np.testing.assert_array_equal(again.pairs[name].a, pair.a)
        np.testing.assert_array_equal(again.pairs[name].b, pair.b)


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_merged_checkpoint_and_its_undo(case, choice, tmp_path):
    adapter = adapter_of(case.tower, choice)
    porting.merge_checkpoint(adapter, case.path, tmp_path / "merged", undo=tmp_path / "undo")
    model, info = type(case.model).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = hf_features(tiny.tower_of(model.eval()))
    tiny.same_features(features(case.tower, adapter), theirs)
    tiny.same_features(features(load_vision_tower(tmp_path / "merged")), theirs)

    before, after = tiny.tensors(case.path), tiny.tensors(tmp_path / "merged")
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    own = {own_name(case.family, name) for name in adapter.pairs}
    assert changed == {f"{KEYS[case.family]}{name}.weight" for name in own}

    porting.unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "back")
    assert files(tmp_path / "back") == files(case.path)


def test_the_tower_alone(case, tmp_path):
    visual = tiny.tower_of(case.model)
    visual.save_pretrained(tmp_path / "tower")
    found = describe(tmp_path / "tower")
    assert (found.model_type, found.key_prefix) == (visual.config.model_type, "")
    tower = load_vision_tower(tmp_path / "tower")
    tiny.same_features(features(tower), hf_features(visual))

    adapter = adapter_of(tower)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path / "tower")
    model = with_peft(visual, tmp_path / "a")
    own = {f"base_model.model.{own_name(case.family, name)}" for name in adapter.pairs}
    assert adapted_modules(model) == own
    tiny.same_features(features(tower, adapter), hf_features(model.base_model.model))
    assert load_peft(tmp_path / "a").pairs.keys() == adapter.pairs.keys()


def test_omnis_thinker_alone(omni, tmp_path):
    thinker = omni.model.thinker
    thinker.save_pretrained(tmp_path / "thinker")
    found = describe(tmp_path / "thinker")
    assert (found.model_type, found.key_prefix) == ("qwen3_omni_moe_thinker", "visual.")
    adapter = adapter_of(omni.tower)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path / "thinker")
    model = with_peft(thinker, tmp_path / "a")
    ours = features(load_vision_tower(tmp_path / "thinker"), adapter)
    tiny.same_features(ours, hf_features(model.base_model.model.model.visual))
    porting.merge_checkpoint(adapter, tmp_path / "thinker", tmp_path / "merged")
    merged = type(thinker).from_pretrained(tmp_path / "merged").eval()
    tiny.same_features(ours, hf_features(merged.model.visual))


def test_inspect_says_what_each_family_is(case):
    facts, live = inspect(case.path), case.live
    norm, *linears = ("ln_q", "mlp.0", "mlp.2")
    if "omni" not in case.family:
        norm, *linears = ("norm", "linear_fc1", "linear_fc2")
    tail = f"{linears[0]} → GELU (erf) → {linears[1]}"
    mergers = {f"{live}merger": f"blocks.2 → {norm} → 2×2 merge → {tail}"}
    if case.family in tiny.DEEPSTACK:
        deepstack = "merger_list" if "omni" in case.family else "deepstack_merger_list"
        for i, layer in enumerate((0, 2)):
            text = f"blocks.{layer} → 2×2 merge → {norm} → {tail}"
            mergers[f"{live}{deepstack}.{i}"] = text
    assert facts["family"] == case.family
    assert facts["keys begin with"] == KEYS[case.family]
    assert facts["last layer"] == f"{live}blocks.2"
    assert facts["mergers"] == mergers
    assert facts["adaptable Linears"].keys() == set(case.tower.config.linears)
    vision = sum(p.numel() for p in tiny.tower_of(case.model).parameters())
    assert facts["parameters"]["vision"] == vision
    # The files also hold Qwen3-Omni's ears and mouth.
    assert facts["parameters"]["all"] == sum(x.size for x in tiny.tensors(case.path).values())
    dict(case.model.named_modules())[facts["last layer"]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("single", [False, True], ids=["two", "single"])
def test_names_go_there_and_back(family, single):
    names = [f"merger.linear_fc{i}" for i in (1, 2)]
    names += [f"deepstack_merger_list.{n}.linear_fc{i}" for n in (0, 11) for i in (1, 2)]
    for name in names:
        lacks = (single and name.endswith("fc1")) or (
            "deepstack" in name and not FAMILIES[family].deepstack
        )
        if lacks:
            with pytest.raises(ValueError, match=name.rpartition(".")[0]):
                FAMILIES[family].family_name(name, single)
        else:
            path = FAMILIES[family].live + FAMILIES[family].family_name(name, single)
            assert linear_of_live_path(path) == name


@pytest.mark.parametrize(
    "path",
    [
        "model.visual.blocks.0.mlp.linear_fc2",
        "model.visual.merger.norm",
        "thinker.model.visual.merger.ln_q",
        "thinker.audio_tower.merger.linear_fc2",
        "talker.model.visual.merger.mlp.2",
        "model.visual.merger.mlp.1",
        "model.visual.merger_list.0.linear_fc2.x",
        "merger_list",
    ],
)
def test_other_paths_are_no_merger(path):
    assert linear_of_live_path(path) is None


@pytest.mark.parametrize("spoil", ["llama", "nonesuch"])
def test_an_unknown_family_lists_the_known_ones(spoil, omni, tmp_path):
    copy = shutil.copytree(omni.path, tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps({"model_type": spoil}))
    adapter = adapter_of(omni.tower)
    for action in (
        lambda: load_vision_tower(copy),
        lambda: save_peft(adapter, tmp_path / "a", base_model_name_or_path=copy),
        lambda: porting.merge_checkpoint(adapter, copy, tmp_path / "m"),
        lambda: save_peft(
            adapter, tmp_path / "a", base_model_name_or_path="org/name", model_type=spoil
        ),
    ):
        with pytest.raises(UserError) as caught:
            action()
        message = str(caught.value)
        assert repr(spoil) in message
        assert "\n" not in message
        assert all(family in message for family in FAMILIES)
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_a_missing_tensor_of_omni_has_omnis_name(omni, tmp_path):
    copy = shutil.copytree(omni.path, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    lost = ["thinker.visual.merger.mlp.2.bias", "thinker.visual.merger_list.1.ln_q.weight"]
    save_file({k: v for k, v in tensors.items() if k not in lost}, copy / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_vision_tower(copy)
    assert sorted(caught.value.faults) == [f"{key} is missing" for key in lost]


def test_an_omni_without_vision(omni, tmp_path):
    copy = shutil.copytree(omni.path, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("thinker.visual.")}
    save_file(kept, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no vision tensor \(thinker\.visual\.…"):
        load_vision_tower(copy)


def test_two_towers_in_one_checkpoint(tiny_dir, tmp_path):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    second = {k.removeprefix("model."): v for k, v in tensors.items() if "visual" in k}
    save_file(tensors | second, copy / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"more than one vision tower \(model\.visual\.…, vis"
    ):
        load_vision_tower(copy)


def test_qwen3_5_may_hold_tensors_for_speculative_decoding(tmp_path):
    model = tiny.model(tiny.family_config("qwen3_5"))
    model.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | {"mtp.norm.weight": np.ones(3, np.float32)}, file)
    tiny.same_features(
        features(load_vision_tower(tmp_path / "m")), hf_features(tiny.tower_of(model))
    )


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("qwen3_vl", "model.visual.merger.linear_fc2"),
        ("qwen3_omni_moe", "thinker.model.visual.merger.mlp.2"),
        ("qwen3_5", "model.visual.merger.linear_fc2"),
        ("qwen3_omni_moe_vision_encoder", "merger.mlp.2"),
    ],
)
def test_the_family_of_a_base_on_the_hub(family, path, tmp_path):
    adapter = tiny.random_adapter({"merger.linear_fc2": (24, 128)})
    base = {"base_model_name_or_path": "org/name", "model_type": family}
    save_peft(adapter, tmp_path / "a", **base)
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["target_modules"] == [path]
    assert load_peft(tmp_path / "a").pairs.keys() == {"merger.linear_fc2"}


def test_an_adapter_that_the_family_has_no_place_for(case, tmp_path):
    wrong = {"deepstack_merger_list.7.linear_fc2": (24, 128), "merger.linear_fc2": (23, 128)}
    with pytest.raises(UserError) as caught:
        save_peft(tiny.random_adapter(wrong), tmp_path / "a", base_model_name_or_path=case.path)
    name = own_name(case.family, "merger.linear_fc2")
    assert f"{KEYS[case.family]}{name}.weight has shape [24, 128]" in str(caught.value)
    lacks = "7" if case.family in tiny.DEEPSTACK else "no DeepStack"
    assert lacks in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_an_omni_adapter_of_an_older_transformers(omni, tmp_path):
    """Its modules had the names of the files' keys."""
    adapter = adapter_of(omni.tower)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=omni.path)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    older = {k.replace("thinker.model.", "thinker."): v for k, v in tensors.items()}
    save_file(older, tmp_path / "a" / WEIGHTS)
    assert load_peft(tmp_path / "a").pairs.keys() == adapter.pairs.keys()
    save_file(tensors | older, tmp_path / "a" / WEIGHTS)
    with pytest.raises(UserError, match="is a second lora_A of merger"):
        load_peft(tmp_path / "a")


@pytest.mark.parametrize("family", ["qwen3_omni_moe", "qwen3_5"])
def test_run_and_export(family, tmp_path):
    model = tiny.model(tiny.family_config(family))
    model.save_pretrained(tmp_path / "checkpoint")
    tiny.save_processor(tmp_path / "checkpoint", 256, 1024)
    for side, name in (("forget", "red triangle"), ("preserve", "blue circle")):
        (tmp_path / side / name).mkdir(parents=True)
        for file in sorted((ASSETS / "images" / "train" / name).iterdir())[:6]:
            shutil.copy(file, tmp_path / side / name)
    folders = {name: tmp_path / name for name in ("checkpoint", "forget", "preserve")}
    options = folders | {"out": tmp_path / "run", "rank": 2}
    pairs = ([f"--{key}", str(value)] for key, value in options.items())
    main(["run", *(part for pair in pairs for part in pair)])

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["adapter"]["targets"]) == (3 if family in tiny.DEEPSTACK else 1)
    adapter = load_peft(tmp_path / "run" / "adapter")
    ours = features(load_vision_tower(tmp_path / "checkpoint"), adapter)
    for form in ("peft", "merged"):
        command = ["export", tmp_path / "run", "--format", form, "--out", tmp_path / form]
        main([str(part) for part in command])
    visual = with_peft(model, tmp_path / "peft").get_submodule(
        f"base_model.model.{LIVE[family]}".rstrip(".")
    )
    tiny.same_features(ours, hf_features(visual))
    cls = getattr(transformers, tiny.CLASSES[family])
    merged = cls.from_pretrained(tmp_path / "merged").eval()
    tiny.same_features(ours, hf_features(tiny.tower_of(merged)))
