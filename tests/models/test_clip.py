"""Parity with Hugging Face's CLIPModel: each block on the same input, then the whole."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPConfig, CLIPModel

from jax_unlearn.models.clip import encoders
from jax_unlearn.models.clip.encoders import ClipTextConfig
from jax_unlearn.models.clip.model import eot_positions, text_forward
from porting import load_clip
from porting.clip import abstract_clip, clip_config
from tests import tiny
from tests.tiny import close_to_largest

PART = {"rtol": 1e-3, "atol": 1e-5}
IDS, MASK = tiny.clip_texts()
PIXELS = tiny.clip_images()
NAMES = ("text_projection", "visual_projection")
# Each side with each activation, and both rules for the end of a text.
CASES = {
    "quick_gelu, gelu, today's end": {"eos": 40, "text_act": "quick_gelu", "vision_act": "gelu"},
    "gelu, quick_gelu, yesterday's end": {"eos": 2, "text_act": "gelu", "vision_act": "quick_gelu"},
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Hugging Face's model, and ours of its checkpoint."""
    model = tiny.model(tiny.clip_config(**CASES[request.param]))
    path = tmp_path_factory.mktemp("clip") / "m"
    model.save_pretrained(path)
    return model, load_clip(path)


def hf_outputs(model, ids=IDS, mask=MASK, pixels=PIXELS):
    """Hugging Face's output, and the inputs and outputs of its blocks and projections."""
    seen = {}

    def hook(name):
        return lambda _, args, out: seen.update({name: (args[0].numpy(), out.numpy())})

    parts = [(name, part) for name, part in model.named_modules()]
    parts = [(name, part) for name, part in parts if "Layer" in type(part).__name__]
    parts += [(name, model.get_submodule(name)) for name in NAMES]
    hooks = [part.register_forward_hook(hook(name)) for name, part in parts]
    mask = None if mask is None else torch.from_numpy(mask)
    out = model(torch.from_numpy(ids), torch.from_numpy(pixels), attention_mask=mask)
    for handle in hooks:
        handle.remove()
    return out, seen


def block(layers, index):
    """One of stacked blocks, as a compiled function of its input and mask."""
    graphdef, stacked = nnx.split(layers)
    one = nnx.merge(graphdef, jax.tree.map(lambda x: np.asarray(x)[index], stacked))
    return jax.jit(lambda x, mask: one(x, mask))


def differs(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 1e-2 * np.abs(theirs).max()


def seen_tokens(states, mask=MASK):
    return np.asarray(states, np.float32)[np.asarray(mask, bool)]


@pytest.mark.parametrize("layer", range(3))
def test_text_block_on_the_same_input(case, layer):
    model, clip = case
    x, y = hf_outputs(model)[1][f"text_model.encoder.layers.{layer}"]
    mask = encoders.text_mask(jnp.asarray(MASK, bool))
    with jax.default_matmul_precision("highest"):
        ours = block(clip.text_model.layers, layer)(x, mask)
    np.testing.assert_allclose(seen_tokens(ours), seen_tokens(y), **PART)


@pytest.mark.parametrize("layer", range(2))
def test_image_block_on_the_same_input(case, layer):
    model, clip = case
    x, y = hf_outputs(model)[1][f"vision_model.encoder.layers.{layer}"]
    with jax.default_matmul_precision("highest"):
        ours = block(clip.vision_model.layers, layer)(x, None)
    np.testing.assert_allclose(ours, y, **PART)


def test_whole_model(case):
    model, clip = case
    theirs, inner = hf_outputs(model)
    text, image = clip.encode_text(IDS, MASK), clip.encode_image(PIXELS)
    for ours, name in zip((text, image), NAMES, strict=True):
        assert ours.taps.keys() == {name}
        close_to_largest(ours.taps[name], inner[name][0])
        close_to_largest(ours.embeds, inner[name][1])
    hidden = theirs.text_model_output.last_hidden_state
    close_to_largest(seen_tokens(text.last_hidden_state), seen_tokens(hidden))
    close_to_largest(image.last_hidden_state, theirs.vision_model_output.last_hidden_state)
    close_to_largest(clip.logits(text.embeds, image.embeds), theirs.logits_per_text)


def left_padded():
    ids, mask = IDS[:, ::-1].copy(), MASK[:, ::-1].copy()
    ids[:, -1], mask[:, -1] = 49, 1
    return ids, mask


def with_a_hole():
    """A token that is no padding at the end, but is masked all the same."""
    mask = MASK.copy()
    mask[:, 1] = 0
    return IDS, mask


INPUTS = {
    "no mask": (IDS, None),
    "full": (IDS, np.ones_like(MASK)),
    "left padding": left_padded(),
    "hole": with_a_hole(),
    "one token": (IDS[:, :1], None),
    "one text": (IDS[1:2, :3], MASK[1:2, :3]),
    "no end": (np.full((2, 5), 7), None),
    "two ends": (np.array([[1, 40, 3, 40], [49, 1, 49, 2]]), None),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_text(case, kind):
    model, clip = case
    ids, mask = INPUTS[kind]
    theirs, inner = hf_outputs(model, ids, mask)
    ours = clip.encode_text(ids, mask)
    every = np.ones(ids.shape) if mask is None else mask
    hidden = theirs.text_model_output.last_hidden_state
    close_to_largest(seen_tokens(ours.last_hidden_state, every), seen_tokens(hidden, every))
    ends = np.asarray(eot_positions(jax.device_put(ids), clip.config.text))
    # What Hugging Face makes of a text whose end is masked means nothing.
    valid = every[np.arange(len(ids)), ends] > 0
    close_to_largest(np.asarray(ours.embeds)[valid], inner["text_projection"][1][valid])
    assert valid.any()


def test_bool_masks_and_jax_arrays_are_taken(case):
    _, clip = case
    usual = clip.encode_text(IDS, MASK)
    other = clip.encode_text(jnp.asarray(IDS), jnp.asarray(MASK, bool))
    np.testing.assert_array_equal(usual.embeds, other.embeds)
    image = clip.encode_image(jnp.asarray(PIXELS))
    np.testing.assert_array_equal(image.embeds, clip.encode_image(PIXELS).embeds)


def test_the_ends_by_both_rules():
    ids = jnp.asarray([[1, 40, 49, 40, 3], [49, 1, 40, 49, 40], [7, 7, 7, 7, 7]])
    config = ClipTextConfig(8, 8, 1, 1, vocab_size=50, max_position_embeddings=5, eos_token_id=40)
    assert eot_positions(ids, config).tolist() == [1, 2, 0]
    assert eot_positions(ids, replace(config, highest_ends=True)).tolist() == [2, 0, 0]


def test_padding_does_not_leak(case):
    """Other ids there, and other texts beside: the same bytes for what is no padding."""
    _, clip = case
    ids, mask = left_padded()
    other = np.where(mask == 1, ids, 5)
    for left, right in ((ids, other), (IDS, np.where(MASK == 1, IDS, 5))):
        seen = mask if left is ids else MASK
        a, b = clip.encode_text(left, seen), clip.encode_text(right, seen)
        np.testing.assert_array_equal(
            seen_tokens(a.last_hidden_state, seen), seen_tokens(b.last_hidden_state, seen)
        )
    with pytest.raises(AssertionError):
        close_to_largest(
            seen_tokens(clip.encode_text(ids).last_hidden_state, mask),
            seen_tokens(clip.encode_text(other).last_hidden_state, mask),
        )


def test_a_token_does_not_see_what_follows(case):
    _, clip = case
    ids = IDS.copy()
    ids[:, 6:] = 5
    a, b = (clip.encode_text(x).last_hidden_state for x in (IDS, ids))
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert differs(a[:, 6:], b[:, 6:])


LOST = {
    "the causal mask": lambda mask: jnp.broadcast_to(mask[:, None, None], (5, 1, 12, 12)),
    "the padding": lambda mask: jnp.broadcast_to(
        jnp.tril(jnp.ones((12, 12), bool)), (5, 1, 12, 12)
    ),
}


@pytest.mark.parametrize("lost", LOST)
def test_the_parity_tests_notice_a_lost_mask(case, lost, monkeypatch):
    model, clip = case
    ids, mask = left_padded() if lost == "the padding" else (IDS, MASK)
    theirs = hf_outputs(model, ids, mask)[0].text_model_output.last_hidden_state
    arguments = jnp.asarray(ids), jnp.asarray(mask, bool), None
    right = jax.jit(lambda *given: clip.text_features(*given).last_hidden_state)(*arguments)
    close_to_largest(seen_tokens(right, mask), seen_tokens(theirs, mask))
    monkeypatch.setattr(encoders, "text_mask", LOST[lost])
    wrong = jax.jit(lambda *given: clip.text_features(*given).last_hidden_state)(*arguments)
    assert differs(seen_tokens(wrong, mask), seen_tokens(theirs, mask))


@pytest.mark.parametrize("side", ["text", "vision"])
def test_the_parity_tests_notice_another_gelu(case, side):
    """And the ends of the other rule would be other features."""
    _, clip = case
    part = getattr(clip.config, side)
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[part.hidden_act]
    config = replace(clip.config, **{side: replace(part, hidden_act=other)})
    wrong = nnx.merge(nnx.split(abstract_clip(config))[0], nnx.state(clip))
    if side == "text":
        ours, theirs = wrong.encode_text(IDS, MASK), clip.encode_text(IDS, MASK)
    else:
        ours, theirs = wrong.encode_image(PIXELS), clip.encode_image(PIXELS)
    with pytest.raises(AssertionError):
        close_to_largest(ours.embeds, theirs.embeds)


@pytest.mark.parametrize("name", NAMES)
def test_linear_is_torchs(case, name):
    model, clip = case
    weight, bias = clip.linear(name)
    theirs = model.get_submodule(name)
    assert theirs.bias is None
    assert weight.dtype == bias.dtype == np.float32
    np.testing.assert_array_equal(weight, theirs.weight.numpy())
    np.testing.assert_array_equal(bias, np.zeros(24))


def adapter(clip, *names):
    return tiny.random_adapter({name: clip.linear(name)[0].shape for name in names})


def test_an_adapter_is_the_change_of_the_weight(case):
    model, clip = case
    both = adapter(clip, *NAMES)
    changed = tiny.model(model.config)
    for name, pair in both.pairs.items():
        change = both.scale * (pair.b @ pair.a)
        changed.get_submodule(name).weight += torch.from_numpy(change)
    inner = hf_outputs(changed)[1]
    base = clip.encode_text(IDS, MASK), clip.encode_image(PIXELS)
    ours = clip.encode_text(IDS, MASK, both), clip.encode_image(PIXELS, both)
    for before, after, name in zip(base, ours, NAMES, strict=True):
        close_to_largest(after.embeds, inner[name][1])
        assert differs(before.embeds, after.embeds)
        np.testing.assert_array_equal(before.taps[name], after.taps[name])


def test_an_adapter_of_the_other_side_changes_nothing(case):
    _, clip = case
    text, vision = (adapter(clip, name) for name in NAMES)
    ours, usual = clip.encode_text(IDS, MASK, adapter=vision), clip.encode_text(IDS, MASK)
    np.testing.assert_array_equal(ours.embeds, usual.embeds)
    ours, usual = clip.encode_image(PIXELS, adapter=text), clip.encode_image(PIXELS)
    np.testing.assert_array_equal(ours.embeds, usual.embeds)


def test_what_the_model_does_not_take(case):
    _, clip = case
    wrong = tiny.random_adapter({"merger.linear_fc2": (24, 128)})
    for call in (
        lambda: clip.encode_text(IDS, MASK, adapter=wrong),
        lambda: clip.encode_image(PIXELS, adapter=wrong),
        lambda: clip.linear("merger.linear_fc2"),
    ):
        with pytest.raises(ValueError, match=r"no Linear merger\.linear_fc2; it has \['text_proj"):
            call()
    with pytest.raises(ValueError, match="texts of 13 tokens; at most 12"):
        clip.encode_text(np.ones((1, 13), int))
    for wrong_id in (-1, 50):
        with pytest.raises(ValueError, match="vocabulary of 50"):
            clip.encode_text(np.array([[1, wrong_id]]))
    with pytest.raises(
        ValueError, match=r"has shape \[2, 3, 20, 18\], expected \[n, channels = 3, height = 20"
    ):
        clip.encode_image(PIXELS[..., :18])


def test_bfloat16_is_as_close_as_torchs(case, tmp_path):
    model, _ = case
    exact = hf_outputs(model)[1]
    half = tiny.model(model.config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m")
    ours = load_clip(tmp_path / "m", "bfloat16")
    features = ours.encode_text(IDS, MASK), ours.encode_image(PIXELS)
    texts, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    theirs = (
        half.get_text_features(texts, mask).pooler_output,
        half.get_image_features(torch.from_numpy(PIXELS)).pooler_output,
    )
    for mine, other, name in zip(features, theirs, NAMES, strict=True):
        right = exact[name][1]
        error = np.linalg.norm(np.asarray(mine.embeds, np.float32) - right)
        allowed = np.linalg.norm(other.float().numpy() - right)
        assert mine.embeds.dtype == mine.last_hidden_state.dtype == jnp.bfloat16
        assert error <= 1.5 * allowed
        assert allowed < 0.1 * np.linalg.norm(right)
    assert ours.logit_scale[...].dtype == ours.logits(features[0].embeds, features[1].embeds).dtype
    assert ours.logit_scale[...].dtype == jnp.float32


def test_one_shape_compiles_once(case):
    _, clip = case
    text_forward.on(jax.default_backend()).clear_cache()
    for seed in range(3):
        clip.encode_text(*tiny.clip_texts(seed=seed))
    assert text_forward.compilations() == 1


def test_the_program_does_not_grow_with_depth(case):
    _, clip = case

    def program(depth):
        config = replace(clip.config, text=replace(clip.config.text, num_hidden_layers=depth))
        split = nnx.split(abstract_clip(config))
        arguments = *split, jnp.asarray(IDS), jnp.asarray(MASK, bool), None
        return str(jax.make_jaxpr(text_forward.function, static_argnums=0)(*arguments)).count("\n")

    assert program(2) == program(8)


def test_the_encoders_work_inside_transformations(case):
    model, clip = case
    text, image = adapter(clip, NAMES[0]), adapter(clip, NAMES[1])
    usual = clip.encode_text(IDS, MASK, adapter=text).embeds
    close_to_largest(jax.jit(lambda i: clip.encode_text(i, MASK, text).embeds)(IDS), usual, 1e-5)
    usual = clip.encode_image(PIXELS, adapter=image).embeds
    by_flax = nnx.jit(lambda m, p: m.encode_image(p, image).embeds)(clip, PIXELS)
    close_to_largest(by_flax, usual, 1e-5)
    change = jax.grad(lambda a: (clip.encode_text(IDS, MASK, adapter=a).embeds ** 2).sum())(text)
    assert all(
        np.abs(part).max() > 0 for part in vars(change.pairs[NAMES[0]]).values() if part is not None
    )
    theirs = torch.from_numpy(PIXELS).requires_grad_()
    model.get_image_features(theirs).pooler_output.sum().backward()
    ours = jax.grad(lambda p: clip.encode_image(p).embeds.sum())(PIXELS)
    close_to_largest(ours, theirs.grad, 1e-4)


def test_arguments_are_converted_or_named(case):
    _, clip = case
    usual = clip.encode_image(PIXELS).embeds
    np.testing.assert_array_equal(clip.encode_image(torch.from_numpy(PIXELS)).embeds, usual)
    text = clip.encode_text(IDS, MASK).embeds
    other = clip.encode_text(torch.from_numpy(IDS), torch.from_numpy(MASK)).embeds
    np.testing.assert_array_equal(other, text)
    for wrong, message in {
        "a cat": "input_ids is not an array of numbers, but of <U5",
        tuple(IDS[0].tolist()): r"input_ids has shape \[\d+\] and dtype int64, expected",
        (): "of at least one text",
    }.items():
        with pytest.raises(ValueError, match=message):
            clip.encode_text(wrong)
    with pytest.raises(ValueError, match=r"pixel_values has shape \[3, 20, 20\], expected \[n, ch"):
        clip.encode_image(PIXELS[0])


def test_vit_b_16(tmp_path):
    """OpenAI's ViT-B/16, at its own size, on random weights: no error of size or depth."""
    config = CLIPConfig(vision_config={"patch_size": 16})
    with torch.device("meta"):
        model = CLIPModel(config)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        parameter.normal_(float(is_scale), 0.02, generator=generator)
    for part in (model.text_model, model.vision_model):
        # Buffers are not in the state, and have no values on the meta device.
        ids = part.embeddings.position_ids
        ids.copy_(torch.arange(ids.shape[1])[None])
    model.save_pretrained(tmp_path / "m")
    clip = load_clip(tmp_path / "m")
    assert clip.config.text.eos_token_id == 49407
    assert clip_config(tmp_path / "m").vision.side == 14

    random = np.random.default_rng(0)
    ids = random.integers(1, 49000, (3, 77))
    mask = np.arange(77) < np.array([[77], [5], [20]])
    ids[np.arange(3), mask.sum(axis=1) - 1] = 49407
    pixels = random.normal(size=(2, 3, 224, 224)).astype(np.float32)
    theirs, inner = hf_outputs(model, ids, mask.astype(np.int64), pixels)
    text, image = clip.encode_text(ids, mask), clip.encode_image(pixels)
    hidden = theirs.text_model_output.last_hidden_state
    close_to_largest(seen_tokens(text.last_hidden_state, mask), seen_tokens(hidden, mask))
    close_to_largest(image.last_hidden_state, theirs.vision_model_output.last_hidden_state)
    for ours, name in zip((text, image), NAMES, strict=True):
        close_to_largest(ours.embeds, inner[name][1])
    close_to_largest(clip.logits(text.embeds, image.embeds), theirs.logits_per_text)
