"""CLIP's encoders alone, and MetaCLIP 2, beside transformers' own models; what is no CLIP."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.runtime.errors import UserError
from porting import is_clip
from porting.checkpoint import SINGLE
from porting.clip import clip_projections, load_clip
from porting.qwen3_vision import load_vision_tower
from tests import tiny
from tests.tiny import close_to_largest

TEXT, VISUAL = "text_projection", "visual_projection"
IDS, MASK = tiny.clip_texts()
PIXELS = tiny.clip_images()
# MetaCLIP 2's tokenizer ends a text with id 2, which means the highest id in an older CLIP.
META_IDS, META_MASK = tiny.clip_texts(end=2, pad=1)


def meta_config():
    return transformers.MetaClip2Config(
        text_config=tiny.CLIP_TEXT | {"eos_token_id": 2, "pad_token_id": 1},
        vision_config=tiny.CLIP_VISION,
        projection_dim=24,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A CLIP and a MetaCLIP 2, by the beginning of their classes' names."""
    folder = tmp_path_factory.mktemp("whole")
    for name, config in (("CLIP", tiny.clip_config()), ("MetaClip2", meta_config())):
        tiny.model(config).save_pretrained(folder / name)
    return folder


def texts_of(name):
    ids, mask = (META_IDS, META_MASK) if name == "MetaClip2" else (IDS, MASK)
    return ids, mask, (torch.from_numpy(ids), torch.from_numpy(mask))


def test_metaclip_2(saved):
    model = transformers.MetaClip2Model.from_pretrained(saved / "MetaClip2").eval()
    clip = load_clip(saved / "MetaClip2")
    assert is_clip(saved / "MetaClip2")
    ids, mask, tensors = texts_of("MetaClip2")
    with torch.no_grad():
        theirs = model(tensors[0], torch.from_numpy(PIXELS), tensors[1])
        text = model.get_text_features(*tensors).pooler_output
        image = model.get_image_features(torch.from_numpy(PIXELS)).pooler_output
    ours = clip.encode_text(ids, mask).embeds, clip.encode_image(PIXELS).embeds
    close_to_largest(ours[0], text)
    close_to_largest(ours[1], image)
    close_to_largest(clip.logits(*ours), theirs.logits_per_text)


@pytest.mark.parametrize("name", ["CLIP", "MetaClip2"])
@pytest.mark.parametrize("projection", [TEXT, VISUAL])
def test_one_encoder_alone_is_read_and_merged(name, projection, saved, tmp_path):
    side = "Text" if projection == TEXT else "Vision"
    kind = getattr(transformers, f"{name}{side}ModelWithProjection")
    kind.from_pretrained(saved / name).save_pretrained(tmp_path / "base")
    assert clip_projections(tmp_path / "base") == (projection,)
    clip = load_clip(tmp_path / "base")
    assert clip.config.linears == (projection,)
    adapter = tiny.random_adapter({projection: clip.linear(projection)[0].shape})
    porting.merge_checkpoint(adapter, tmp_path / "base", tmp_path / "merged")
    porting.save_peft(adapter, tmp_path / "adapter", base_model_name_or_path=tmp_path / "base")
    ids, mask, tensors = texts_of(name)
    for folder, change in (("base", None), ("merged", adapter)):
        model = kind.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            if projection == TEXT:
                theirs = model(*tensors).text_embeds
                ours = clip.encode_text(ids, mask, change)
            else:
                theirs = model(pixel_values=torch.from_numpy(PIXELS)).image_embeds
                ours = clip.encode_image(PIXELS, change)
        close_to_largest(ours.embeds, theirs)
    other = VISUAL if projection == TEXT else TEXT
    with pytest.raises(ValueError, match=f"CLIP has no Linear {other}; it has "):
        clip.linear(other)
    with pytest.raises(ValueError, match=r"this CLIP has no (image|text) encoder, and takes"):
        clip.encode_image(PIXELS) if projection == TEXT else clip.encode_text(ids, mask)


OTHERS = ("siglip", "siglip2", "chinese_clip", "altclip", "clipseg", "x_clip", "align")


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_models_of_images_and_texts_are_refused_by_name(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert not is_clip(tmp_path)
    for load in (load_clip, load_vision_tower):
        with pytest.raises(UserError) as caught:
            load(tmp_path)
        assert repr(model_type) in str(caught.value)
        assert "clip, clip_text_model, clip_vision_model, metaclip_2" in str(caught.value)
        assert "\n" not in str(caught.value)


PICKLES = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"]


@pytest.mark.parametrize("pickle", PICKLES)
def test_a_pickle_alone_is_said_to_be_one(pickle, tiny_dir, saved, tmp_path):
    for source, load in ((saved / "CLIP", load_clip), (tiny_dir, load_vision_tower)):
        folder = tmp_path / source.name
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        (folder / pickle).write_bytes(b"a pickle")
        with pytest.raises(UserError) as caught:
            load(folder)
        message = str(caught.value)
        assert f"{pickle} is a pickle, which can run code and is not read" in message
        assert "safe_serialization=True" in message
        assert "\n" not in message
        # Beside safetensors it does no harm.
        save_file(load_file(source / SINGLE), folder / SINGLE)
        load(folder)


def test_the_end_of_a_text_is_no_rule_of_metaclip_2(saved):
    """An older CLIP's id 2 means the highest id; MetaCLIP 2 means id 2 itself."""
    assert not load_clip(saved / "MetaClip2").config.text.highest_ends
    texts = np.array([[5, 49, 2, 1, 1]])
    clip = load_clip(saved / "MetaClip2")
    tap = clip.encode_text(texts).taps[TEXT]
    np.testing.assert_array_equal(tap, clip.encode_text(texts).last_hidden_state[:, 2])
