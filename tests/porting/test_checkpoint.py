"""Every layout that a Qwen3-VL checkpoint comes in, and every fault that one can have."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, Qwen3Config, Qwen3VLForConditionalGeneration

from jax_unlearn.runtime.errors import UserError
from porting import CheckpointError
from porting.checkpoint import INDEX, SINGLE, Checkpoint
from porting.qwen3_vision import describe, load_vision_tower, vision_config, vision_table
from porting.weight_table import torch_tensors

VISUAL = "model.visual."
BIAS = f"{VISUAL}merger.linear_fc2.bias"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def exported(tower):
    """The tower as torch's tensors, by the keys of the tower alone."""
    return dict(torch_tensors(vision_table(tower.config), nnx.state(tower)))


def tower_keys(tensors, prefix=VISUAL):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor.astype(np.float32), err_msg=key)


def shard(directory, parts):
    """Write `parts`, a list of tensor dicts, as numbered shards with an index."""
    (directory / SINGLE).unlink(missing_ok=True)
    weight_map = {}
    for i, part in enumerate(parts):
        name = f"model-{i:05}.safetensors"
        save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def edit_index(directory, **changes):
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= changes
    (directory / INDEX).write_text(json.dumps(index))


@pytest.fixture
def rewrite(copy, tensors):
    """Write the checkpoint again with some tensors changed; None takes one out."""

    def rewrite(changes):
        changed = tensors | changes
        save_file({k: v for k, v in changed.items() if v is not None}, copy / SINGLE)
        return copy

    return rewrite


@pytest.fixture
def sharded(copy, tensors):
    keys = sorted(tensors)
    parts = [{key: tensors[key] for key in keys[i::3]} for i in range(3)]
    shard(copy, parts)
    return copy


def faults(directory):
    """What loading says, after checking that the message is one line."""
    with pytest.raises(UserError) as caught:
        load_vision_tower(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_one_file(tiny_tower, tensors):
    same_tensors(exported(tiny_tower), tower_keys(tensors))


def test_many_shards(sharded, tensors):
    assert not (sharded / SINGLE).exists()
    same_tensors(exported(load_vision_tower(sharded)), tower_keys(tensors))


def test_shards_that_transformers_wrote(tiny_model, tensors, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    same_tensors(exported(load_vision_tower(tmp_path / "m")), tower_keys(tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_a_file(dtype, copy, tensors):
    cast = {key: tensor.astype(DTYPES[dtype]) for key, tensor in tensors.items()}
    save_file(cast, copy / SINGLE)
    same_tensors(exported(load_vision_tower(copy)), tower_keys(cast))


def test_a_bfloat16_tower_rounds_as_torch_does(tiny_dir, tiny_model, tensors):
    ours = exported(load_vision_tower(tiny_dir, "bfloat16"))
    for key, parameter in tiny_model.model.visual.named_parameters():
        np.testing.assert_array_equal(
            ours[key].astype(np.float32), parameter.bfloat16().float().numpy()
        )


def test_older_prefix(copy, tensors):
    renamed = {
        key.replace(VISUAL, "visual.").replace("model.language_model.", "model."): tensor
        for key, tensor in tensors.items()
    }
    save_file(renamed, copy / SINGLE)
    assert describe(copy).key_prefix == "visual."
    assert describe(copy).live_prefix == VISUAL
    same_tensors(exported(load_vision_tower(copy)), tower_keys(tensors))


def test_the_tower_alone(tiny_model, tensors, tmp_path):
    tiny_model.model.visual.save_pretrained(tmp_path / "m")
    assert describe(tmp_path / "m").key_prefix == ""
    same_tensors(exported(load_vision_tower(tmp_path / "m")), tower_keys(tensors))


def test_only_the_towers_tensors_are_read(tiny_dir, tensors, monkeypatch):
    seen, read_into = [], Checkpoint.read_into

    def spy(self, key, out):
        seen.append(key)
        read_into(self, key, out)

    monkeypatch.setattr(Checkpoint, "read_into", spy)
    load_vision_tower(tiny_dir)
    assert sorted(seen) == sorted(key for key in tensors if key.startswith(VISUAL))
    assert len(seen) < len(tensors)


def test_older_config_without_rope_parameters(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["vision_config"]["rope_parameters"]
    (copy / "config.json").write_text(json.dumps(config))
    assert vision_config(copy)[1].rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", [2]),
        ("hidden_size", "64"),
        ("rope_parameters", 3),
        ("rope_parameters", {"rope_theta": "x"}),
        ("deepstack_visual_indexes", 0),
        ("deepstack_visual_indexes", [7]),
    ],
)
def test_values_that_no_tower_has(copy, name, value):
    """What is said of them depends on the types that are checked in tests alone."""
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        vision_config(copy)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({BIAS: None}, f"{BIAS} is missing"),
        ({f"{VISUAL}blocks.3.norm1.weight": np.ones(32, np.float32)}, "norm1.weight is unexpected"),
        ({BIAS: np.ones(23, np.float32)}, f"{BIAS} has shape [23], expected [24]"),
        ({BIAS: np.ones((24, 1), np.float32)}, "has shape [24, 1], expected [24]"),
        ({BIAS: np.ones(24, np.int8)}, f"{BIAS} has dtype I8, expected F32, F16, BF16"),
        ({BIAS: np.ones(24, np.float64)}, f"{BIAS} has dtype F64"),
    ],
    ids=["missing", "unexpected", "shape", "dimensions", "int8", "float64"],
)
def test_a_fault_of_one_tensor(rewrite, changes, message):
    assert message in faults(rewrite(changes))


def test_several_faults_come_at_once(rewrite):
    changes = {
        BIAS: None,
        f"{VISUAL}merger.norm.bias": np.ones(3, np.float32),
        f"{VISUAL}pos_embed.weight": np.ones((25, 32), np.int8),
        f"{VISUAL}extra": np.ones(1, np.float32),
    }
    with pytest.raises(CheckpointError) as caught:
        load_vision_tower(rewrite(changes))
    assert len(caught.value.faults) == 4
    for key in changes:
        assert sum(key in fault for fault in caught.value.faults) == 1


def test_many_faults_stay_one_line(rewrite, tensors):
    changes = dict.fromkeys(key for key in tensors if "blocks" in key)
    assert f"and {len(changes) - 8} more" in faults(rewrite(changes))


def test_a_linear_that_is_turned_around_is_a_fault(rewrite, tensors):
    key = f"{VISUAL}merger.linear_fc2.weight"
    turned = np.ascontiguousarray(tensors[key].T)
    assert f"{key} has shape [128, 24], expected [24, 128]" in faults(rewrite({key: turned}))


def test_a_key_in_two_shards(copy, tensors):
    shard(copy, [tensors, {BIAS: tensors[BIAS]}])
    message = faults(copy)
    assert f"{BIAS} is in model-00000.safetensors and in model-00001.safetensors" in message


def test_a_truncated_shard(sharded):
    path = sharded / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model-00001.safetensors cannot be read" in faults(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "..", "sub/x.safetensors"])
def test_an_index_that_leads_out(sharded, name, tensors):
    save_file(tensors, sharded.parent / "x.safetensors")
    edit_index(sharded, extra=name)
    assert f"names {name!r}, which is not a file of this directory" in faults(sharded)


def test_an_index_that_names_a_missing_file(sharded):
    (sharded / "model-00002.safetensors").unlink()
    assert "model-00002.safetensors is missing" in faults(sharded)


def test_an_index_that_places_a_key_wrongly(sharded):
    edit_index(sharded, **{"model.visual.extra": "model-00000.safetensors"})
    assert f"{INDEX} places model.visual.extra in model-00000.safetensors" in faults(sharded)


def test_faults_outside_the_tower_are_a_warning(sharded, tensors):
    """transformers loads such checkpoints, and we read the tower alone."""
    other = next(key for key in sorted(tensors) if "visual" not in key)
    edit_index(sharded, **{"model.language_model.gone.weight": "model-00000.safetensors"})
    holder = json.loads((sharded / INDEX).read_text())["weight_map"][other]
    again = next(f"model-0000{i}.safetensors" for i in range(3) if f"-0000{i}" not in holder)
    save_file(load_file(sharded / again) | {other: tensors[other]}, sharded / again)
    with pytest.warns(UserWarning, match=r"2 faults outside 'model\.visual\.'"):
        load_vision_tower(sharded)


def test_a_buffer_that_is_no_weight_may_be_there(copy, tensors):
    buffer = {"model.visual.rotary_pos_emb.inv_freq": np.ones(4, np.float32)}
    save_file(tensors | buffer, copy / SINGLE)
    load_vision_tower(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(copy, tensors, value):
    key = "model.visual.blocks.1.mlp.linear_fc1.weight"
    broken = np.array(tensors[key])
    broken[3, 4] = value
    save_file(tensors | {key: broken}, copy / SINGLE)
    assert f"{key} holds values that are not finite" in faults(copy)


def test_an_adapter_beside_the_checkpoint_is_refused(copy):
    (copy / "adapter_config.json").write_text("{}")
    assert "an adapter lies beside the checkpoint" in faults(copy)


def test_a_pointer_of_git_lfs_is_called_that(copy):
    (copy / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert f"{SINGLE} is a Git LFS pointer" in faults(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": "x"}'])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    assert f"{INDEX} is not an index" in faults(sharded)


def test_an_index_beside_a_single_file(sharded, tensors):
    save_file(tensors, sharded / SINGLE)
    assert f"holds {SINGLE} and {INDEX}" in faults(sharded)


def test_a_text_only_checkpoint(copy, tensors):
    save_file({k: v for k, v in tensors.items() if "visual" not in k}, copy / SINGLE)
    assert "holds no vision tensor" in faults(copy)


def test_a_prefix_that_transformers_removes(copy, tensors):
    save_file({f"model.{key}": tensor for key, tensor in tensors.items()}, copy / SINGLE)
    again = Qwen3VLForConditionalGeneration.from_pretrained(copy, output_loading_info=True)
    assert not again[1]["missing_keys"]
    same_tensors(exported(load_vision_tower(copy)), tower_keys(tensors))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model."])
def test_a_prefix_that_a_wrapper_left_is_named(copy, tensors, wrapper):
    save_file({wrapper + key: tensor for key, tensor in tensors.items()}, copy / SINGLE)
    message = faults(copy)
    assert f"begin with '{wrapper}model.visual.'" in message
    assert f"a wrapper left '{wrapper}'; save the model inside it" in message


def test_an_adapter_that_is_not_merged_is_named(copy, tensors):
    name = "merger.linear_fc2."
    save_file({k.replace(name, f"{name}base_layer."): v for k, v in tensors.items()}, copy / SINGLE)
    assert "an adapter that is not merged; save it after merge_and_unload()" in faults(copy)


def test_a_family_without_our_tower(copy):
    Qwen3Config().save_pretrained(copy)
    message = faults(copy)
    assert "'qwen3'" in message
    assert "known: qwen3_vl" in message


def test_a_model_type_that_transformers_does_not_know(copy):
    (copy / "config.json").write_text('{"model_type": "nonesuch"}')
    assert "nonesuch" in faults(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 3}'])
def test_a_config_that_is_none(copy, text):
    (copy / "config.json").write_text(text)
    assert "config.json" in faults(copy)


def test_a_config_that_leaves_out_what_transformers_knows(copy):
    whole, path = vision_config(copy), copy / "config.json"
    config = json.loads(path.read_text())
    del config["vision_config"]["in_channels"]
    path.write_text(json.dumps(config))
    assert vision_config(copy) == whole


def test_an_unknown_activation(copy):
    config = AutoConfig.from_pretrained(copy)
    config.vision_config.hidden_act = "relu"
    config.save_pretrained(copy)
    assert "hidden_act 'relu'" in faults(copy)


def test_no_directory(tmp_path):
    assert "no such directory" in faults(tmp_path / "nowhere")


def test_not_a_checkpoint(tmp_path):
    assert "is not a checkpoint" in faults(tmp_path)


def test_no_weights(copy):
    (copy / SINGLE).unlink()
    assert "no *.safetensors here" in faults(copy)


def test_an_unknown_dtype(tiny_dir):
    with pytest.raises(UserError, match="'float16' is not one of float32, bfloat16"):
        load_vision_tower(tiny_dir, "float16")
