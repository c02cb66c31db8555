"""CLIP's checkpoints, by transformers and by OpenCLIP; adapters in the real PEFT; merged ones."""

import json
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from peft import PeftModel, set_peft_model_state_dict
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import OPEN_CONFIG
from porting import (
    CheckpointError,
    is_clip,
    load_peft,
    open_clip,
    save_peft,
)
from porting.checkpoint import SINGLE
from porting.clip import clip_config, clip_table, load_clip
from porting.open_clip import OPEN_PROJECTIONS, OPEN_WEIGHTS, open_clip_table
from porting.peft import CONFIG, WEIGHTS
from porting.qwen3_vision import load_vision_tower
from porting.weight_table import torch_tensors
from tests import tiny
from tests.open_clip import open_clip_tensors
from tests.tiny import close_to_largest

TEXT, VISUAL = "text_projection", "visual_projection"
IDS, MASK = tiny.clip_texts()
PIXELS = tiny.clip_images()
BIAS = "text_model.encoder.layers.1.self_attn.k_proj.bias"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def model():
    return tiny.model(tiny.clip_config())


@pytest.fixture(scope="module")
def clip_dir(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "checkpoint"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(clip_dir):
    return load_clip(clip_dir)


@pytest.fixture(scope="module")
def tensors(clip_dir):
    return load_file(clip_dir / SINGLE)


@pytest.fixture
def copy(clip_dir, tmp_path):
    """A checkpoint of one's own, to spoil."""
    return shutil.copytree(clip_dir, tmp_path / "copy")


def faults(directory, load=load_clip):
    """What loading says, after checking that the message is one line."""
    with pytest.raises(UserError) as caught:
        load(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def exported(clip, table=clip_table):
    return dict(torch_tensors(table(clip.config), nnx.state(clip)))


def same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor.astype(np.float32), err_msg=key)


def edit(path, change):
    """Rewrite a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Checkpoints.


def test_every_tensor_there_and_back(clip, tensors):
    assert BIAS in tensors
    same_tensors(exported(clip), tensors)


def test_shards(model, tensors, tmp_path):
    model.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    same_tensors(exported(load_clip(tmp_path / "m")), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_a_file(dtype, copy, tensors):
    cast = {key: tensor.astype(DTYPES[dtype]) for key, tensor in tensors.items()}
    save_file(cast, copy / SINGLE)
    same_tensors(exported(load_clip(copy)), cast)


def test_a_bfloat16_model_rounds_as_torch_does(clip_dir, model):
    ours = exported(load_clip(clip_dir, "bfloat16"))
    for key, parameter in model.named_parameters():
        if key != "logit_scale":
            np.testing.assert_array_equal(
                ours[key].astype(np.float32), parameter.bfloat16().float().numpy()
            )


def test_buffers_of_older_checkpoints_are_no_weights(copy, tensors):
    buffers = {
        "text_model.embeddings.position_ids": np.arange(12)[None],
        "vision_model.embeddings.position_ids": np.arange(10)[None],
    }
    save_file(tensors | buffers, copy / SINGLE)
    same_tensors(exported(load_clip(copy)), tensors)
    save_file(tensors | {"text_model.position_ids": np.arange(12)[None]}, copy / SINGLE)
    assert "text_model.position_ids is unexpected" in faults(copy)


def test_every_fault_of_the_tensors_at_once(copy, tensors):
    wrong = {
        "text_projection.weight": np.ones((32, 24), np.float32),
        "logit_scale": np.ones((), np.int8),
        "text_projection.bias": np.ones(24, np.float32),
        "text_model.encoder.layers.3.mlp.fc1.bias": np.ones(56, np.float32),
    }
    kept = {key: tensor for key, tensor in (tensors | wrong).items() if key != BIAS}
    save_file(kept, copy / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        load_clip(copy)
    assert sorted(caught.value.faults) == [
        "logit_scale has dtype I8, expected F32, F16, BF16",
        f"{BIAS} is missing",
        "text_model.encoder.layers.3.mlp.fc1.bias is unexpected",
        "text_projection.bias is unexpected",
        "text_projection.weight has shape [32, 24], expected [24, 32]",
    ]


SPOILS = {
    "activation": ("text_config", "hidden_act", "relu", "text hidden_act 'relu' is not one of"),
    "two ends": ("text_config", "eos_token_id", [1, 2], "text eos_token_id is [1, 2], expected"),
    "no depth": ("vision_config", "num_hidden_layers", 0, "vision num_hidden_layers is 0"),
    "patches": ("vision_config", "patch_size", 21, "vision patch_size 21 is more than image_size"),
    "oblong": ("vision_config", "image_size", [20, 24], "vision image_size is [20, 24]"),
    "heads": ("vision_config", "num_attention_heads", 5, "not a multiple of the number of"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_config_that_no_clip_has(spoil, copy):
    side, name, value, message = SPOILS[spoil]
    edit(copy / "config.json", lambda config: config[side].update({name: value}))
    assert message in faults(copy)


def test_a_clip_of_no_width(copy):
    edit(copy / "config.json", lambda config: config.update(projection_dim=None))
    assert "projection_dim is None" in faults(copy)


def test_an_unknown_dtype(clip_dir):
    with pytest.raises(UserError, match="'float16' is not one of float32, bfloat16"):
        load_clip(clip_dir, "float16")


def test_each_loader_knows_the_others_checkpoints(clip_dir, tiny_dir, tmp_path):
    message = faults(clip_dir, load_vision_tower)
    assert "model_type 'clip' has no Qwen3 vision tower that we know" in message
    message = faults(tiny_dir)
    assert "model_type is 'qwen3_vl'; load_clip takes clip, clip_text_model, clip_vision" in message
    assert (is_clip(clip_dir), is_clip(tiny_dir)) == (True, False)
    assert "no such directory" in faults(tmp_path / "nowhere")
    assert "no such directory" in faults(tmp_path / "nowhere", is_clip)
    assert "is not a checkpoint" in faults(tmp_path)


# OpenCLIP.


def open_model(quick_gelu):
    """A model as OpenCLIP's: one activation, epsilon 1e-5, the highest id ends a text."""
    act = "quick_gelu" if quick_gelu else "gelu"
    config = tiny.clip_config(eos=2, text_act=act, vision_act=act)
    config.text_config.layer_norm_eps = config.vision_config.layer_norm_eps = 1e-5
    return tiny.model(config)


def open_config(quick_gelu):
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 3}
    vision = {"image_size": 20, "patch_size": 6, "width": 48, "head_width": 16, "layers": 2}
    model = {
        "embed_dim": 24,
        "text_cfg": text | {"mlp_ratio": 1.75},
        "vision_cfg": vision | {"mlp_ratio": 80 / 48},
    }
    return {"model_cfg": model | ({"quick_gelu": True} if quick_gelu else {}), "preprocess_cfg": {}}


def write_open_clip(model, path, quick_gelu=True, file=OPEN_WEIGHTS):
    model.save_pretrained(path.with_name("hf"))
    path.mkdir()
    save_file(open_clip_tensors(load_file(path.with_name("hf") / SINGLE)), path / file)
    (path / OPEN_CONFIG).write_text(json.dumps(open_config(quick_gelu)))
    return path


@pytest.fixture
def open_dir(tmp_path):
    return write_open_clip(open_model(True), tmp_path / "open")


def same_embeddings(clip, model, adapter=None):
    """Ours against those of Hugging Face's model, which has the adapter already."""
    text = model.get_text_features(torch.from_numpy(IDS), torch.from_numpy(MASK))
    image = model.get_image_features(torch.from_numpy(PIXELS))
    close_to_largest(clip.encode_text(IDS, MASK, adapter).embeds, text.pooler_output)
    close_to_largest(clip.encode_image(PIXELS, adapter).embeds, image.pooler_output)


@pytest.mark.parametrize("file", [OPEN_WEIGHTS, SINGLE])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip(quick_gelu, file, tmp_path):
    model = open_model(quick_gelu)
    path = write_open_clip(model, tmp_path / "open", quick_gelu, file)
    clip = load_clip(path)
    assert is_clip(path)
    assert clip.config == load_clip(tmp_path / "hf").config
    same_embeddings(clip, model)
    same_tensors(exported(clip, open_clip_table), tiny.tensors(path))


def test_open_clip_beside_timm(open_dir, tensors):
    """timm's config.json names no model_type, and its model.safetensors is a tower alone."""
    (open_dir / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    save_file({"cls_token": np.ones(3, np.float32)}, open_dir / SINGLE)
    same_embeddings(load_clip(open_dir), open_model(True))


def test_transformers_is_read_where_both_are(copy, open_dir, clip, model, tmp_path):
    """As LAION publishes its models; the adapter and the merged checkpoint follow."""
    shutil.copy(open_dir / OPEN_CONFIG, copy)
    shutil.copy(open_dir / OPEN_WEIGHTS, copy)
    same_tensors(exported(load_clip(copy)), exported(clip))
    adapter = adapter_of(clip, TEXT)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=copy)
    # OpenCLIP's copy would hold the original projections.
    with pytest.warns(UserWarning, match=f"not copied, .*: {OPEN_WEIGHTS}"):
        porting.merge_checkpoint(adapter, copy, tmp_path / "merged")
    assert not (tmp_path / "merged" / OPEN_WEIGHTS).exists()
    same_embeddings(clip, merged_model("CLIPModel", tmp_path / "merged"), adapter)


def test_open_clips_own_sizes():
    """What its config leaves out."""
    text = open_clip.text_part(open_clip.TEXT, "gelu")
    vision = open_clip.vision_part(open_clip.VISION | {"width": 1024}, "gelu")
    assert (text["hidden_size"], text["num_attention_heads"]) == (512, 8)
    assert (text["intermediate_size"], text["num_hidden_layers"]) == (2048, 12)
    assert (vision["num_attention_heads"], vision["intermediate_size"]) == (16, 4096)


OPEN_SPOILS = {
    "resnet": ("vision_cfg", {"layers": [3, 4, 6, 3]}, "num_hidden_layers is [3, 4, 6, 3]"),
    "timm": ("vision_cfg", {"timm_model_name": "x"}, "vision_cfg timm_model_name = 'x' is not"),
    "hf": ("text_cfg", {"hf_model_name": "x"}, "text_cfg hf_model_name = 'x' is not supported"),
    "pool": ("text_cfg", {"pool_type": "eos"}, "text_cfg pool_type = 'eos' is not supported"),
    "heads": ("vision_cfg", {"head_width": 0}, "is not OpenCLIP's config of a CLIP"),
    "oblong": ("vision_cfg", {"image_size": [20, 24]}, "vision image_size is [20, 24]"),
}


@pytest.mark.parametrize("spoil", OPEN_SPOILS)
def test_an_open_clip_of_another_kind(spoil, open_dir):
    side, changes, message = OPEN_SPOILS[spoil]
    edit(open_dir / OPEN_CONFIG, lambda config: config["model_cfg"][side].update(changes))
    assert message in faults(open_dir)


def test_an_open_clip_with_fields_that_are_off(open_dir):
    def change(config):
        config["model_cfg"]["text_cfg"].update(no_causal_mask=False, pool_type="argmax")
        config["model_cfg"]["vision_cfg"].update(image_size=[20, 20], ls_init_value=None)

    edit(open_dir / OPEN_CONFIG, change)
    same_embeddings(load_clip(open_dir), open_model(True))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_cfg": {"text_cfg": 1}}'])
def test_an_open_clip_config_that_is_none(text, open_dir):
    (open_dir / OPEN_CONFIG).write_text(text)
    assert "is not OpenCLIP's config of a CLIP" in faults(open_dir)


def test_faults_of_open_clips_tensors(open_dir):
    tensors = load_file(open_dir / OPEN_WEIGHTS)
    del tensors["visual.proj"]
    tensors["text_projection"] = np.ascontiguousarray(tensors["text_projection"].T)
    tensors["logit_bias"] = np.ones((), np.float32)
    save_file(tensors, open_dir / OPEN_WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        load_clip(open_dir)
    assert sorted(caught.value.faults) == [
        "logit_bias is unexpected",
        "text_projection has shape [24, 32], expected [32, 24]",
        "visual.proj is missing",
    ]
    (open_dir / OPEN_WEIGHTS).unlink()
    assert "no model.safetensors here" in faults(open_dir)
    (open_dir / "open_clip_pytorch_model.bin").write_bytes(b"a pickle")
    assert "open_clip_pytorch_model.bin is a pickle, which can run code" in faults(open_dir)


# Adapters.

CHOICES = {"text": (TEXT,), "image": (VISUAL,), "both": (TEXT, VISUAL)}


def adapter_of(clip, *names):
    return tiny.random_adapter({name: clip.linear(name)[0].shape for name in names})


def with_peft(model, directory):
    """The real PEFT's model, without a warning of a key that it did not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT asks transformers for a property of an older name, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return PeftModel.from_pretrained(model, directory)


def no_key_is_lost(model, directory):
    """PEFT itself loads with strict=False."""
    saved = load_file(directory / WEIGHTS)
    tensors = {key: torch.from_numpy(value) for key, value in saved.items()}
    result = set_peft_model_state_dict(model, tensors)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key] == []


def adapted_modules(model):
    prefix = "base_model.model."
    found = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert all(name.startswith(prefix) for name in found)
    return {name.removeprefix(prefix) for name in found}


def test_the_names_are_torchs(model):
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in CHOICES["both"])


@pytest.mark.parametrize("choice", CHOICES)
def test_an_adapter_in_the_real_peft(choice, clip, clip_dir, tmp_path):
    adapter = adapter_of(clip, *CHOICES[choice])
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=clip_dir)
    model = with_peft(transformers.CLIPModel.from_pretrained(clip_dir).eval(), tmp_path / "a")
    assert adapted_modules(model) == set(CHOICES[choice])
    no_key_is_lost(model, tmp_path / "a")
    with torch.no_grad():
        same_embeddings(clip, model, adapter)
    texts = clip.encode_text(IDS, MASK), clip.encode_text(IDS, MASK, adapter)
    images = clip.encode_image(PIXELS), clip.encode_image(PIXELS, adapter)
    for name, (before, after) in ((TEXT, texts), (VISUAL, images)):
        change = np.abs(np.asarray(before.embeds - after.embeds)).max()
        assert (change > 1e-2) == (name in adapter.pairs)


@pytest.mark.parametrize("name", [TEXT, VISUAL])
def test_an_adapter_on_one_side_alone(name, clip, clip_dir, tmp_path):
    """On the classes with a projection, whose weights are the whole checkpoint's."""
    adapter = adapter_of(clip, name)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=clip_dir)
    side = "Text" if name == TEXT else "Vision"
    cls = getattr(transformers, f"CLIP{side}ModelWithProjection")
    model = with_peft(cls.from_pretrained(clip_dir).eval(), tmp_path / "a")
    assert adapted_modules(model) == {name}
    no_key_is_lost(model, tmp_path / "a")
    with torch.no_grad():
        if name == TEXT:
            theirs = model(torch.from_numpy(IDS), torch.from_numpy(MASK)).text_embeds
            close_to_largest(clip.encode_text(IDS, MASK, adapter).embeds, theirs)
        else:
            theirs = model(pixel_values=torch.from_numpy(PIXELS)).image_embeds
            close_to_largest(clip.encode_image(PIXELS, adapter).embeds, theirs)


@pytest.mark.parametrize("choice", CHOICES)
def test_an_adapter_comes_back_bit_for_bit(choice, clip, clip_dir, tmp_path):
    adapter = adapter_of(clip, *CHOICES[choice])
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=clip_dir)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["target_modules"] == sorted(CHOICES[choice])
    again = load_peft(tmp_path / "a")
    assert (again.alpha, again.rank) == (adapter.alpha, adapter.rank)
    assert again.pairs.keys() == adapter.pairs.keys()
    for name, pair in adapter.pairs.items():
        assert np.asarray(again.pairs[name].a).tobytes() == pair.a.tobytes()
        assert np.asarray(again.pairs[name].b).tobytes() == pair.b.tobytes()


def test_a_base_on_the_hub(clip, tmp_path):
    base = {"base_model_name_or_path": "openai/clip-vit-base-patch32"}
    adapter = adapter_of(clip, TEXT)
    # Its own names say that it is CLIP's.
    save_peft(adapter, tmp_path / "a", **base)
    assert load_peft(tmp_path / "a").pairs.keys() == {TEXT}
    with pytest.raises(UserError, match="text_projection is not a Merger's"):
        save_peft(adapter, tmp_path / "b", model_type="qwen3_vl", **base)
    with pytest.raises(UserError, match=r"known: qwen3_vl, .*clip, clip_text_model"):
        save_peft(adapter, tmp_path / "b", model_type="nonesuch", **base)


def test_an_adapter_that_clip_has_no_place_for(clip_dir, clip, tmp_path):
    wrong = {
        "merger.linear_fc2": (24, 128),
        "text_model.encoder.layers.0.mlp.fc1": (56, 32),
        VISUAL: (24, 47),
    }
    adapter = tiny.random_adapter(wrong)
    for action in (
        lambda: save_peft(adapter, tmp_path / "a", base_model_name_or_path=clip_dir),
        lambda: porting.merge_checkpoint(adapter, clip_dir, tmp_path / "a"),
    ):
        with pytest.raises(UserError) as caught:
            action()
        message = str(caught.value)
        assert "merger.linear_fc2 is not CLIP's text_projection or visual_projection" in message
        assert "layers.0.mlp.fc1 is not CLIP's" in message
        assert (
            "visual_projection.weight has shape [24, 48], the adapter's b @ a [24, 47]" in message
        )
    with pytest.raises(UserError, match="it has no pair"):
        save_peft(
            LoraAdapter({}, alpha=1.0, rank=1), tmp_path / "a", base_model_name_or_path=clip_dir
        )
    assert not (tmp_path / "a").exists()


# Merged.


def merged_model(cls, path):
    model, info = getattr(transformers, cls).from_pretrained(path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval().requires_grad_(False)


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_merged_checkpoint_and_its_undo(choice, clip, clip_dir, tmp_path):
    adapter = adapter_of(clip, *CHOICES[choice])
    porting.merge_checkpoint(adapter, clip_dir, tmp_path / "merged", undo=tmp_path / "undo")
    model = merged_model("CLIPModel", tmp_path / "merged")
    same_embeddings(clip, model, adapter)
    same_embeddings(load_clip(tmp_path / "merged"), model)
    before, after = tiny.tensors(clip_dir), tiny.tensors(tmp_path / "merged")
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {f"{name}.weight" for name in adapter.pairs}
    porting.unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "back")
    assert files(tmp_path / "back") == files(clip_dir)


@pytest.mark.parametrize("name", [TEXT, VISUAL])
def test_one_side_saved_alone(name, clip, clip_dir, tmp_path):
    """A checkpoint of a class with a projection takes the adapter too."""
    side = "Text" if name == TEXT else "Vision"
    cls = f"CLIP{side}ModelWithProjection"
    getattr(transformers, cls).from_pretrained(clip_dir).save_pretrained(tmp_path / "base")
    adapter = adapter_of(clip, name)
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tmp_path / "base")
    porting.merge_checkpoint(adapter, tmp_path / "base", tmp_path / "merged")
    model = merged_model(cls, tmp_path / "merged")
    if name == TEXT:
        theirs = model(torch.from_numpy(IDS), torch.from_numpy(MASK)).text_embeds
        close_to_largest(clip.encode_text(IDS, MASK, adapter).embeds, theirs)
    else:
        theirs = model(pixel_values=torch.from_numpy(PIXELS)).image_embeds
        close_to_largest(clip.encode_image(PIXELS, adapter).embeds, theirs)
    other = VISUAL if name == TEXT else TEXT
    with pytest.raises(UserError, match=f"{other} is not CLIP's {name}"):
        save_peft(
            adapter_of(clip, other), tmp_path / "b", base_model_name_or_path=tmp_path / "base"
        )


def test_a_tower_without_its_projection(clip, clip_dir, tmp_path):
    model = transformers.CLIPTextModel.from_pretrained(clip_dir)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="holds no text_projection; save the model with"):
        save_peft(adapter_of(clip, TEXT), tmp_path / "a", base_model_name_or_path=tmp_path / "base")
    assert "holds no text_projection; save the model with its proj" in faults(tmp_path / "base")


def test_clip_config_reads_no_weights(clip_dir, tmp_path):
    (tmp_path / "m").mkdir()
    shutil.copy(clip_dir / "config.json", tmp_path / "m")
    assert clip_config(tmp_path / "m") == load_clip(clip_dir).config


@pytest.mark.parametrize("file", [OPEN_WEIGHTS, SINGLE])
@pytest.mark.parametrize("choice", CHOICES)
def test_open_clip_is_merged(choice, file, tmp_path):
    """Its projections are parameters [D_in, E] without a Linear, which PEFT cannot adapt."""
    path = write_open_clip(open_model(True), tmp_path / "open", file=file)
    clip, before = load_clip(path), tiny.tensors(path)
    adapter = adapter_of(clip, *CHOICES[choice])
    porting.merge_checkpoint(adapter, path, tmp_path / "merged", undo=tmp_path / "undo")
    after = tiny.tensors(tmp_path / "merged")
    assert {k: (v.dtype, v.shape) for k, v in after.items()} == {
        k: (v.dtype, v.shape) for k, v in before.items()
    }
    names = {OPEN_PROJECTIONS[name]: pair for name, pair in adapter.pairs.items()}
    assert {k for k in before if not np.array_equal(before[k], after[k])} == names.keys()
    for key, pair in names.items():
        change = adapter.scale * (pair.b @ pair.a).T
        np.testing.assert_allclose(after[key], before[key] + change, atol=1e-6)
    merged = load_clip(tmp_path / "merged")
    for ours, theirs in (
        (merged.encode_text(IDS, MASK), clip.encode_text(IDS, MASK, adapter)),
        (merged.encode_image(PIXELS), clip.encode_image(PIXELS, adapter)),
    ):
        np.testing.assert_allclose(ours.embeds, theirs.embeds, atol=1e-5)
    porting.unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "back")
    assert files(tmp_path / "back") == files(path)


def test_open_clip_without_projections_is_not_merged(open_dir, clip, tmp_path):
    kept = {k: v for k, v in tiny.tensors(open_dir).items() if "proj" not in k}
    save_file(kept, open_dir / OPEN_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"holds no text_projection or visual\.proj"):
        porting.merge_checkpoint(adapter_of(clip, TEXT), open_dir, tmp_path / "merged")
