"""The Hugging Face model is asked with the checkpoint's own chat template and image processor."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer

import porting
from jax_unlearn.data.images import read_image
from jax_unlearn.evaluate.vlm import asking
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import base_of, load_vlm
from jax_unlearn.evaluate.vlm.placement import choose_device, choose_dtype, stored_parameters
from jax_unlearn.evaluate.vlm.reasoning import is_unfinished
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from tests import tiny

SHIPPED = ASSETS / "checkpoint"


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(ASSETS / "checkpoint", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_template_in_its_own_json_is_read(checkpoint):
    file = checkpoint / "chat_template.jinja"
    template = file.read_text()
    file.unlink()
    with pytest.raises(UserError, match="has no chat template"):
        load_vlm(checkpoint)
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_vlm(checkpoint).tokenizer.chat_template == template


def photo(name="red triangle", size=None):
    file = sorted((ASSETS / "images" / "test" / name).iterdir())[0]
    image = read_image(file)
    return image.resize(size) if size else image


def test_reasoning_that_the_template_opens_is_marked_and_has_room(checkpoint):
    template = checkpoint / "chat_template.jinja"
    before = load_vlm(checkpoint)
    template.write_text(template.read_text().replace("assistant\\n'", "assistant\\n<think>\\n'"))
    vlm = load_vlm(checkpoint, max_pixels=2048)
    assert (before.new_tokens, vlm.new_tokens) == (32, 2048)
    assert (before.preprocessor.largest, vlm.preprocessor.largest) == (65536, 2048)
    (reply,) = ask(vlm, [photo()], "what is this?", max_new_tokens=3)
    assert reply.startswith("<think>")
    assert is_unfinished(reply)
    settings = AskSettings(max_new_tokens=3)
    assert settings.used(vlm) == {
        "device": str(vlm.model.device),
        "dtype": "float32",
        "max_pixels": 2048,
        "max_new_tokens": 3,
        "batch_tokens": 16384,
    }
    with pytest.raises(UserError, match="--max-new-tokens 0: must be at least 1"):
        AskSettings(max_new_tokens=0).check()


@pytest.mark.parametrize(
    ("device", "parameters", "dtype"),
    [
        ("cpu", 2_000_000, "float32"),
        ("cpu", 2_000_000_000, "float32"),
        ("cpu", 8_000_000_000, "bfloat16"),
        ("cuda", 2_000_000, "float32"),
        ("cuda", 2_000_000_000, "bfloat16"),
    ],
)
def test_large_models_are_in_bfloat16(device, parameters, dtype):
    assert choose_dtype("auto", torch.device(device), parameters) == dtype
    assert choose_dtype("float32", torch.device(device), parameters) == "float32"


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="--device nonsense: is not a device of PyTorch"):
        choose_device("nonsense")
    with pytest.raises(UserError, match="--device xpu:77: PyTorch sees 0"):
        choose_device("xpu:77")
    assert choose_device("cpu").type == "cpu"
    counted = sum(parameter.numel() for parameter in load_vlm(SHIPPED).model.parameters())
    # Two heads that share a matrix store it once.
    assert stored_parameters(SHIPPED) == counted


def test_batches_are_bounded_by_tokens_and_keep_the_order(monkeypatch):
    vlm, seen = load_vlm(SHIPPED), []

    def generate(vlm, prompt, grids, patches, most):
        seen.append((len(patches), len(patches) * (len(prompt) + most)))
        # The first pixel tells one image from another.
        return [f"{grids[0][1]} {one[0, 0]:.2f}" for one in patches]

    monkeypatch.setattr(asking, "generate", generate)
    sizes = [(64, 64), (96, 128), (64, 64), (64, 64), (96, 128), (64, 64), (64, 64)]
    colours = [10 * i for i in range(len(sizes))]
    images = [Image.new("RGB", s, (c, c, c)) for s, c in zip(sizes, colours, strict=True)]
    done = []
    answers = ask(vlm, images, "what is this?", batch_tokens=160, advance=done.append)
    one_by_one = [ask(vlm, [image], "what is this?")[0] for image in images]
    assert answers == one_by_one
    assert len(set(answers)) == len(images)
    assert sum(done) == len(images)
    batches = seen[: len(done)]
    assert max(count for count, _ in batches) > 1
    assert all(tokens <= 160 or count == 1 for count, tokens in batches)
    seen.clear()
    ask(vlm, images, "what is this?", batch_size=2)
    assert max(count for count, _ in seen) == 2


@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_that_is_switched_off_leaves_the_base(bias, tmp_path):
    """Also its bias, which PEFT keeps in the adapter (LEACE)."""
    shapes = {"merger.linear_fc2": (128, 512)}
    with safe_open(SHIPPED / "model.safetensors", framework="numpy") as file:
        weight = file.get_slice("model.visual.merger.linear_fc2.weight")
        shapes["merger.linear_fc2"] = tuple(weight.get_shape())
    adapter = tiny.random_adapter(shapes)
    (pair,) = adapter.pairs.values()
    if bias:
        pair = LoraPair(a=0 * pair.a, b=pair.b, bias=pair.b[:, 0] * 10)
        adapter = LoraAdapter({"merger.linear_fc2": pair}, alpha=3.0, rank=2)
    porting.save_peft(adapter, tmp_path / "adapter", base_model_name_or_path=SHIPPED)
    base, vlm = load_vlm(SHIPPED), load_vlm(SHIPPED, tmp_path / "adapter")

    def seen(one):
        patches, grid = one.preprocessor(photo())
        visual = base_of(one.model).model.visual
        with torch.inference_mode():
            return visual(torch.from_numpy(patches), torch.from_numpy(grid)).pooler_output

    with vlm.with_adapter(False):
        assert torch.equal(seen(vlm), seen(base))
    assert not torch.allclose(seen(vlm), seen(base), atol=1e-3)


def test_a_whole_omni_is_asked_through_its_thinker(checkpoint, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    omni = tiny.family_config("qwen3_omni_moe")
    thinker = omni.thinker_config
    thinker.image_token_id, thinker.vision_start_token_id = pad, start
    thinker.text_config.vocab_size = len(tokenizer)
    folder = tmp_path / "omni"
    tiny.model(omni).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny.save_processor(folder, 256, 1024)
    adapter = tiny.random_adapter({"merger.linear_fc2": (24, 128)})
    porting.save_peft(adapter, tmp_path / "adapter", base_model_name_or_path=folder)
    vlm = load_vlm(folder, tmp_path / "adapter")
    assert not any("talker" in name for name, _ in vlm.model.named_parameters())
    images = [photo(), photo("cat"), photo("astronaut")]
    given, generate = {}, vlm.writer.generate
    vlm.writer.generate = lambda **options: given.update(options) or generate(**options)
    after = ask(vlm, images, "what is this?", max_new_tokens=6)
    # Its thinker knows no end of its own.
    assert given["eos_token_id"] == tokenizer.eos_token_id
    with vlm.with_adapter(False):
        before = ask(vlm, images, "what is this?", max_new_tokens=6)
    assert all(before)
    assert before != after
    # The same as the thinker alone.
    alone = tmp_path / "thinker"
    thinker = base_of(load_vlm(folder).model).thinker
    thinker.save_pretrained(alone)
    tokenizer.save_pretrained(alone)
    tiny.save_processor(alone, 256, 1024)
    assert ask(load_vlm(alone), images, "what is this?", max_new_tokens=6) == before
