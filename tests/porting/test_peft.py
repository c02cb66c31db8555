"""Our adapters in the real PEFT, and back."""

import importlib
import json
import pickle
import shutil
import warnings
from copy import deepcopy
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jax_unlearn
from jax_unlearn.models.lora import LoraAdapter, LoraPair, init_adapter
from jax_unlearn.runtime.errors import UserError
from porting import load_peft, save_peft
from porting.clip import load_clip
from porting.families import CLIPS, FAMILIES, HF_CLASSES
from porting.peft import CONFIG, ROOT, WEIGHTS, name_base, read_facts
from porting.qwen3_vision import load_vision_tower
from porting.weight_digests import digest_of_base
from tests import tiny

LIVE = "model.visual."
A = f"{ROOT}{LIVE}merger.linear_fc2.lora_A.weight"
B = A.replace("lora_A", "lora_B")
BIAS = B.replace("weight", "bias")
ZEROS = np.zeros((2, 128), np.float32)


def biased(adapter, seed=0):
    """With a random change of each bias, about as large as that of the outputs."""
    random, pairs = np.random.default_rng(seed), {}
    for name, pair in adapter.pairs.items():
        pairs[name] = replace(pair, bias=random.normal(size=len(pair.b)).astype(np.float32))
    return replace(adapter, pairs=pairs)


@pytest.fixture(params=["plain", "bias"])
def adapter(request):
    return tiny.adapter() if request.param == "plain" else biased(tiny.adapter())


@pytest.fixture
def saved_bias(tiny_dir, tmp_path):
    adapter = biased(tiny.adapter())
    save_peft(adapter, tmp_path / "bias", base_model_name_or_path=tiny_dir)
    return tmp_path / "bias"


@pytest.fixture
def saved(adapter, tiny_dir, tmp_path):
    save_peft(adapter, tmp_path / "adapter", base_model_name_or_path=tiny_dir)
    return tmp_path / "adapter"


@pytest.fixture
def peft_model(tiny_model, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT asks transformers for a property of an older name, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return PeftModel.from_pretrained(deepcopy(tiny_model), saved)


def same_adapter(ours, theirs):
    assert (ours.alpha, ours.rank) == (theirs.alpha, theirs.rank)
    assert ours.pairs.keys() == theirs.pairs.keys()
    for name, pair in theirs.pairs.items():
        for part in ("a", "b", "bias"):
            mine, other = getattr(ours.pairs[name], part), getattr(pair, part)
            assert (mine is None) == (other is None)
            if other is not None:
                assert np.asarray(mine).dtype == np.float32
                assert np.asarray(mine).tobytes() == np.asarray(other).tobytes()


def error_of(directory):
    with pytest.raises(UserError) as caught:
        load_peft(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def adapted_modules(model):
    return sorted(name for name, module in model.named_modules() if hasattr(module, "lora_A"))


def test_only_the_mergers_are_touched(peft_model, adapter):
    assert adapted_modules(peft_model) == sorted(f"{ROOT}{LIVE}{name}" for name in adapter.pairs)


def test_no_key_is_missing_or_unexpected(peft_model, saved):
    tensors = {key: torch.from_numpy(value) for key, value in load_file(saved / WEIGHTS).items()}
    result = set_peft_model_state_dict(peft_model, tensors)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key] == []


def test_the_factors_arrive(peft_model, adapter):
    for name, pair in adapter.pairs.items():
        module = peft_model.get_submodule(f"{ROOT}{LIVE}{name}")
        np.testing.assert_array_equal(module.lora_A["default"].weight, pair.a)
        np.testing.assert_array_equal(module.lora_B["default"].weight, pair.b)
        if pair.bias is None:
            assert module.lora_B["default"].bias is None
        else:
            np.testing.assert_array_equal(module.lora_B["default"].bias, pair.bias)
        assert np.abs(pair.b).max() > 0
        assert module.scaling["default"] == adapter.scale


def test_features_are_ours(peft_model, tiny_tower, adapter):
    pixels = tiny.images()
    theirs = tiny.tower_outputs(peft_model.get_submodule(f"{ROOT}model.visual"), pixels, tiny.GRID)
    ours = tiny_tower(pixels, tiny.GRID, adapter=adapter)
    base = tiny_tower(pixels, tiny.GRID)
    outputs = (theirs.pooler_output, *theirs.deepstack_features)
    for name, output in zip(tiny_tower.config.mergers, outputs, strict=True):
        mine, largest = np.asarray(ours.outputs[name]), np.abs(output.numpy()).max()
        assert np.abs(mine - output.numpy()).max() <= 1e-4 * largest
        assert np.abs(mine - np.asarray(base.outputs[name])).max() > 1e-2 * largest


def test_peft_merges_the_bias(tiny_model, tiny_tower, saved_bias):
    adapter, pixels = load_peft(saved_bias), tiny.images()
    model = PeftModel.from_pretrained(deepcopy(tiny_model), saved_bias).merge_and_unload()
    theirs = tiny.tower_outputs(model.model.visual, pixels, tiny.GRID)
    tiny.same_features(tiny_tower(pixels, tiny.GRID, adapter=adapter), theirs)


def test_a_linear_without_bias_runs_and_does_not_merge(tmp_path):
    """CLIP's projections have none: PEFT says so, and runs them."""
    tiny.model(tiny.clip_config()).save_pretrained(tmp_path / "clip")
    clip, (ids, mask) = load_clip(tmp_path / "clip"), tiny.clip_texts()
    adapter = biased(tiny.random_adapter({"text_projection": (24, 32)}))
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path / "clip")
    same_adapter(load_peft(tmp_path / "a"), adapter)
    base = transformers.CLIPModel.from_pretrained(tmp_path / "clip").eval()
    with pytest.warns(UserWarning, match="has no bias"):
        model = PeftModel.from_pretrained(base, tmp_path / "a")
    ours, before = clip.encode_text(ids, mask, adapter), clip.encode_text(ids, mask)
    with torch.no_grad():
        theirs = model.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask))
    tiny.close_to_largest(ours.embeds, theirs.pooler_output)
    assert np.abs(np.asarray(ours.embeds - before.embeds)).max() > 1
    with pytest.raises(RuntimeError, match="base layer has no bias"):
        model.merge_and_unload()


def test_the_tower_alone_has_no_prefix(tiny_model, adapter, tmp_path):
    visual = deepcopy(tiny_model.model.visual)
    visual.save_pretrained(tmp_path / "tower")
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path / "tower")
    model = PeftModel.from_pretrained(visual, tmp_path / "a")
    assert adapted_modules(model) == sorted(f"{ROOT}{name}" for name in adapter.pairs)
    same_adapter(load_peft(tmp_path / "a"), adapter)


def test_transformers_loads_it_too(tiny_model, saved, adapter):
    model = deepcopy(tiny_model)
    model.load_adapter(str(saved))
    assert adapted_modules(model) == sorted(f"{LIVE}{name}" for name in adapter.pairs)
    theirs = model.get_submodule(f"{LIVE}merger.linear_fc2").lora_B["default"]
    ours = adapter.pairs["merger.linear_fc2"]
    np.testing.assert_array_equal(theirs.weight.detach(), ours.b)
    assert (theirs.bias is None) == (ours.bias is None)
    if ours.bias is not None:
        np.testing.assert_array_equal(theirs.bias.detach(), ours.bias)


def test_round_trip_is_bit_for_bit(saved, adapter):
    same_adapter(load_peft(saved), adapter)


@pytest.mark.parametrize("alpha", [5.0, 1.0, 0.1, 1 / 3])
def test_alpha_survives(alpha, tmp_path):
    adapter = tiny.adapter(rank=3, alpha=alpha)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path="Qwen/Qwen3-VL-2B-Instruct")
    loaded = load_peft(tmp_path / "a")
    assert loaded.alpha == alpha
    assert isinstance(loaded.alpha, float)
    written = json.loads((tmp_path / "a" / CONFIG).read_text())["lora_alpha"]
    assert isinstance(written, int) == alpha.is_integer()


def test_a_fresh_adapter_of_jax_arrays(tmp_path):
    adapter = init_adapter(jax.random.key(0), {"merger.linear_fc2": (24, 128)}, 5, 5.0)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path="Qwen/Qwen3-VL-2B-Instruct")
    same_adapter(load_peft(tmp_path / "a"), adapter)


def test_the_same_adapter_gives_the_same_bytes(saved, adapter, tiny_dir, tmp_path):
    pairs = dict(reversed(adapter.pairs.items()))
    again = LoraAdapter(pairs, alpha=adapter.alpha, rank=adapter.rank)
    save_peft(again, tmp_path / "again", base_model_name_or_path=tiny_dir)
    for name in (CONFIG, WEIGHTS):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_file_says_how_it_was_made(tiny_model, tiny_dir, tmp_path):
    """And its bytes are the same each time: the library's order of several metadata is random."""
    base = {"base_model_name_or_path": tiny_dir, "seed": 7}
    written = set()
    for i in range(3):
        save_peft(tiny.adapter(), tmp_path / str(i), **base)
        written.add((tmp_path / str(i) / WEIGHTS).read_bytes())
    assert len(written) == 1
    facts = read_facts(tmp_path / "0")
    assert (facts["jax_unlearn"], facts["seed"]) == (jax_unlearn.__version__, "7")
    assert facts["base_sha256"] == digest_of_base(tiny.adapter(), tiny_dir)
    changed = deepcopy(tiny_model)
    with torch.no_grad():
        changed.get_submodule(f"{LIVE}merger.linear_fc1").weight[0, 0] += 1
    changed.save_pretrained(tmp_path / "changed")
    assert digest_of_base(tiny.adapter(), tmp_path / "changed") != facts["base_sha256"]
    with safe_open(tmp_path / "0" / WEIGHTS, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    save_peft(tiny.adapter(), tmp_path / "hub", base_model_name_or_path="org/name")
    assert read_facts(tmp_path / "hub") == {"jax_unlearn": jax_unlearn.__version__}


def test_the_name_of_the_base(tiny_dir, tmp_path):
    def named(base, **more):
        save_peft(
            tiny.adapter(), tmp_path / "a", base_model_name_or_path=base, overwrite=True, **more
        )
        config = json.loads((tmp_path / "a" / CONFIG).read_text())
        return config["base_model_name_or_path"], config["revision"]

    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-VL-2B" / "snapshots" / "0a1b"
    shutil.copytree(tiny_dir, snapshot)
    assert named(snapshot) == ("Qwen/Qwen3-VL-2B", "0a1b")
    assert named(tiny_dir) == (tiny_dir.name, None)
    assert named(tmp_path / "gone") == ("gone", None)
    assert named("org/name") == ("org/name", None)
    assert named(tiny_dir, base_model="org/other") == ("org/other", None)


def test_an_adapter_of_an_earlier_version(saved, adapter, tmp_path):
    """It had an absolute path, no `auto_mapping`, and no metadata."""
    config = json.loads((saved / CONFIG).read_text())
    config |= {"auto_mapping": None, "base_model_name_or_path": str(tmp_path / "of" / "mine")}
    del config["peft_version"]
    (saved / CONFIG).write_text(json.dumps(config))
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"format": "pt"})
    same_adapter(load_peft(saved), adapter)
    assert read_facts(saved) == {}
    name_base(saved)
    assert json.loads((saved / CONFIG).read_text())["base_model_name_or_path"] == "mine"


def test_auto_peft_model(saved, adapter, tiny_model, tiny_dir, tmp_path, monkeypatch):
    """It looks for the base's name beside the folder it is started in."""
    monkeypatch.chdir(tiny_dir.parent)
    model = AutoPeftModel.from_pretrained(saved)
    assert type(model.base_model.model) is type(tiny_model)
    theirs = tiny.tower_outputs(
        model.get_submodule(f"{ROOT}model.visual"), tiny.images(), tiny.GRID
    )
    ours = load_vision_tower(tiny_dir)(tiny.images(), tiny.GRID, adapter=adapter)
    tiny.close_to_largest(ours.pooler_output, theirs.pooler_output.detach())


def test_every_family_has_a_class():
    assert HF_CLASSES.keys() == {*FAMILIES, *CLIPS}
    for module, name in HF_CLASSES.values():
        assert hasattr(importlib.import_module(module), name)


# PEFT takes the bias of a lora_B, which has one axis, for a part of a weight.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor.* have invalid shape")
@pytest.mark.parametrize("lora_bias", [False, True])
def test_an_adapter_that_peft_saved(lora_bias, tiny_model, tmp_path):
    targets = [f"{LIVE}merger.linear_fc2", f"{LIVE}deepstack_merger_list.1.linear_fc1"]
    options = {"init_lora_weights": False, "lora_bias": lora_bias}
    config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, **options)
    model = get_peft_model(deepcopy(tiny_model), config)
    model.save_pretrained(tmp_path / "a")
    adapter = load_peft(tmp_path / "a")
    assert (adapter.rank, adapter.alpha) == (3, 7.0)
    assert sorted(LIVE + name for name in adapter.pairs) == sorted(targets)
    pair, module = adapter.pairs["merger.linear_fc2"], model.get_submodule(f"{ROOT}{targets[0]}")
    np.testing.assert_array_equal(pair.a, module.lora_A["default"].weight.detach())
    np.testing.assert_array_equal(pair.b, module.lora_B["default"].weight.detach())
    assert (pair.bias is not None) == lora_bias
    if lora_bias:
        np.testing.assert_array_equal(pair.bias, module.lora_B["default"].bias.detach())


def test_a_plain_adapter_says_nothing_of_bias(tiny_dir, tmp_path):
    """Older PEFT would warn of a field that it does not know."""
    save_peft(tiny.adapter(), tmp_path / "a", base_model_name_or_path=tiny_dir)
    assert "lora_bias" not in json.loads((tmp_path / "a" / CONFIG).read_text())
    assert all(pair.bias is None for pair in load_peft(tmp_path / "a").pairs.values())


def test_an_existing_directory_is_kept(saved, adapter):
    before = (saved / WEIGHTS).read_bytes()
    other = tiny.adapter(seed=1)
    with pytest.raises(UserError, match="--overwrite"):
        save_peft(other, saved, base_model_name_or_path="x")
    assert (saved / WEIGHTS).read_bytes() == before
    save_peft(other, saved, base_model_name_or_path="x", overwrite=True)
    same_adapter(load_peft(saved), other)


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("blocks.0.mlp.linear_fc2", 2, "blocks.0.mlp.linear_fc2 is not a Merger's"),
        ("merger.linear_fc2", 3, "has rank \\[2\\], the adapter 3"),
    ],
)
def test_an_adapter_of_something_else_is_not_saved(name, rank, message, tmp_path):
    pair = LoraPair(a=ZEROS, b=np.zeros((24, 2), np.float32))
    adapter = LoraAdapter({name: pair}, alpha=1.0, rank=rank)
    with pytest.raises(UserError, match=message):
        save_peft(adapter, tmp_path / "a", base_model_name_or_path="x")
    assert not list(tmp_path.iterdir())


def test_faults_of_the_bias_are_collected(tiny_dir, tmp_path):
    adapter = biased(tiny.adapter())
    pairs = dict(adapter.pairs)
    pairs["merger.linear_fc1"] = replace(pairs["merger.linear_fc1"], bias=None)
    # Behind the back of the run-time check of shapes, which users do not have.
    object.__setattr__(pairs["merger.linear_fc2"], "bias", np.zeros(23, np.float32))
    with pytest.raises(UserError) as caught:
        save_peft(replace(adapter, pairs=pairs), tmp_path / "a", base_model_name_or_path=tiny_dir)
    assert "merger.linear_fc1 has no bias and others have" in str(caught.value)
    assert "merger.linear_fc2 has a bias of shape [23], expected [24]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_an_empty_adapter_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="no pair"):
        save_peft(LoraAdapter({}, alpha=1.0, rank=1), tmp_path / "a", base_model_name_or_path="x")


def test_a_base_of_an_unknown_family(adapter, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="'llama'"):
        save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"r": 0}, "r is 0"),
        ({"r": 2.0}, "r is 2.0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"rank_pattern": {"merger": 4}}, "rank_pattern = {'merger': 4} is not supported"),
        ({"alpha_pattern": {"merger": 4}}, "alpha_pattern"),
        ({"use_rslora": True}, "use_rslora = True is not supported"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"lora_bias": "all"}, "lora_bias = 'all' is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"r": 0, "bias": "all"}, "r is 0, expected a positive integer; bias = 'all'"),
        ({"r": 3}, f"{A} has shape [2, 128], expected [3, D_in]"),
    ],
    ids=str,
)
def test_a_config_that_means_something_else(saved, changes, message):
    config = json.loads((saved / CONFIG).read_text()) | changes
    (saved / CONFIG).write_text(json.dumps(config))
    assert message in error_of(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({B: None}, "merger.linear_fc2 has no lora_B"),
        ({A: None}, "merger.linear_fc2 has no lora_A"),
        ({A: ZEROS.T.copy()}, f"{A} has shape [128, 2], expected [2, D_in]"),
        ({B: np.zeros((24, 3), np.float32)}, f"{B} has shape [24, 3], expected [E, 2]"),
        ({A: ZEROS[0]}, f"{A} has shape [128]"),
        ({A: ZEROS.astype(np.float16)}, f"{A} has dtype F16, expected F32"),
        ({"base_model.model.lm_head.weight": ZEROS}, "base_model.model.lm_head.weight is unknown"),
        ({A.removeprefix(ROOT): ZEROS}, f"{A.removeprefix(ROOT)} is unknown"),
        (
            {f"{ROOT}{LIVE}blocks.0.mlp.linear_fc2.lora_A.weight": ZEROS},
            f"{ROOT}{LIVE}blocks.0.mlp.linear_fc2.lora_A.weight is not of a vision Merger",
        ),
    ],
    ids=["no B", "no A", "turned", "rank", "1-D", "dtype", "unknown", "no root", "block"],
)
def test_tensors_that_do_not_belong(saved, changes, message):
    tensors = load_file(saved / WEIGHTS) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, saved / WEIGHTS)
    assert message in error_of(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({BIAS: None}, "merger.linear_fc2 has no lora_B.bias"),
        ({B: None}, "merger.linear_fc2 has no lora_B"),
        ({BIAS: ZEROS}, f"{BIAS} has shape [2, 128], expected [E]"),
        ({BIAS: ZEROS[0]}, "merger.linear_fc2 has a lora_B of 24 rows, and 128 biases"),
        ({BIAS: np.zeros(24)}, f"{BIAS} has dtype F64, expected F32"),
    ],
    ids=["no bias", "no B", "2-D", "E", "dtype"],
)
def test_biases_that_do_not_belong(saved_bias, changes, message):
    tensors = load_file(saved_bias / WEIGHTS) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, saved_bias / WEIGHTS)
    assert message in error_of(saved_bias)


def test_a_bias_that_peft_would_leave_out(saved_bias):
    config = json.loads((saved_bias / CONFIG).read_text())
    (saved_bias / CONFIG).write_text(json.dumps(config | {"lora_bias": False}))
    assert f"{BIAS} needs lora_bias = true" in error_of(saved_bias)


def test_no_tensor_at_all(saved):
    save_file({}, saved / WEIGHTS)
    assert "holds no tensor" in error_of(saved)


def test_a_truncated_file(saved):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-1])
    assert "cannot be read" in error_of(saved)


def test_a_pickle_is_not_opened(saved):
    (saved / WEIGHTS).unlink()
    (saved / "adapter_model.bin").write_bytes(pickle.dumps({}))
    assert "safetensors" in error_of(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_a_config_that_is_none(saved, text):
    (saved / CONFIG).write_text(text)
    assert CONFIG in error_of(saved)


def test_no_directory(tmp_path):
    assert "no such directory" in error_of(tmp_path / "nowhere")


def test_not_an_adapter(tmp_path):
    assert "is not a PEFT adapter" in error_of(tmp_path)
