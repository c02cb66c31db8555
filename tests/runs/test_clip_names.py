"""Names of CLIP: which are the same, which folders they are of, and what is read for them."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

import porting
from jax_unlearn.features.clip_encoder import TEXT, padded
from jax_unlearn.models.clip.model import text_forward
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.inspect.checkpoint_facts import inspect
from jax_unlearn.runs.pipeline import open_source
from jax_unlearn.runs.sources.clip_images import ClipImages
from jax_unlearn.runs.sources.clip_names import ClipNames
from jax_unlearn.runs.sources.open_encoder import open_clip_encoder
from jax_unlearn.runtime.assets import CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError
from tests.open_clip import open_clip_of_bundled
from tests.running import QUIET, parse

CHECKPOINT, IMAGES = CLIP_ASSETS / "checkpoint", CLIP_ASSETS / "images" / "test"


def names(*options, forget=("cat",), preserve=("dog",), checkpoint=CHECKPOINT):
    words = ["run", "--checkpoint", checkpoint, "--out", "out", "--forget-text", *forget]
    return ClipNames(
        parse([str(w) for w in [*words, "--preserve-text", *preserve, *options]]), QUIET
    )


def pictures(*options, checkpoint=CHECKPOINT):
    words = ["run", "--checkpoint", checkpoint, "--out", "out", *options]
    return ClipImages(parse([str(word) for word in words]), QUIET)


def folders(root, **named):
    """Folders with two images each of bundled classes, by folder name."""
    for folder, name in named.items():
        (root / folder).mkdir(parents=True)
        for file in sorted((IMAGES / name).iterdir())[:4]:
            shutil.copy(file, root / folder)
    return root


def without(folder, *files, source=CHECKPOINT):
    shutil.copytree(source, folder)
    for file in files:
        (folder / file).unlink()
    return folder


def error(action):
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names.


def test_names_are_the_same_when_their_tokens_are():
    assert names(forget=("straße",), preserve=("strasse", "dog")).dataset.forget
    said = error(lambda: names(forget=("Café",), preserve=("cafe\u0301",)))
    assert "--forget-text and --preserve-text both have 'Café', the latter as" in said
    said = error(lambda: names(preserve=("a dog", "A DOG")))
    assert "'A DOG' is there twice, as 'a dog' is the same to the model" in said


def test_folders_have_the_names_of_the_lists(tmp_path):
    shown = folders(tmp_path / "shown", Red_Triangle="red triangle", DOG="dog", blue_circle="cat")
    folders(shown, **{"blue circle": "blue circle"})
    with pytest.warns(UserWarning, match="left out sub-folders .*: blue_circle"):
        one = names("--images", shown, forget=("red triangle",), preserve=("dog", "blue circle"))
    labels = {file.path.parent.name: file.label for file in one.image_files[shown]}
    assert labels == {
        "Red_Triangle": "red triangle",
        "DOG": "dog",
        "blue circle": "blue circle",
        # Another folder has the name without this.
        "blue_circle": "blue_circle",
    }


def test_a_name_to_forget_must_have_images(tmp_path):
    shown = folders(tmp_path / "shown", dog="dog")
    said = error(lambda: names("--images", shown))
    assert f"{shown}: has no image of cat, so that nothing could show" in said


def test_a_file_names_the_folders(tmp_path):
    shown = folders(tmp_path / "shown", n02123045="cat", n02084071="dog")
    file = tmp_path / "names.tsv"
    file.write_text("n02123045\tcat\n\nn02084071\tdog\nn0\tnot here\n")
    one = names("--images", shown, "--names", file)
    assert {file.label for file in one.image_files[shown]} == {"cat", "dog"}
    options = ("--forget", shown, "--preserve", shown, "--concept", "cat", "--names", file)
    two = pictures(*options)
    assert {f.label for f in two.dataset.forget} == {"cat"}
    assert [p.text for p in two._names().files] == ["a photo of a cat.", "a photo of a dog."]
    for text, message in {
        "n02123045 cat\n": "line 1 is not a folder, a tab and its name",
        "a\tb\na\tc\n": "line 2 names 'a' again",
        "n1\tcat\n": "none of its folders is among the sub-folders",
    }.items():
        file.write_text(text)
        assert message in error(lambda: names("--images", shown, "--names", file))
    forget, preserve = (folders(tmp_path / side, **{side: "cat"}) for side in ("one", "two"))
    sides = ("--forget", forget, "--preserve", preserve)
    assert message in error(lambda: pictures(*sides, "--names", file))
    assert "cannot be read" in error(lambda: names("--images", shown, "--names", tmp_path / "no"))
    words = ("--forget-text", "cat", "--preserve-text", "dog", "--names", str(file))
    config = parse(["run", "--checkpoint", str(CHECKPOINT), "--out", "out", *words])
    said = error(lambda: open_source(config, QUIET))
    assert "--names: has no effect here: this run reads no image" in said


def test_what_is_wrong_with_names_is_found_before_the_weights_are_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(porting, "load_clip", lambda *_: pytest.fail("the weights were loaded"))
    shown = folders(tmp_path / "shown", dog="dog", **{"long " * 40: "cat"})
    file = tmp_path / "names.tsv"
    file.write_text("n1\tcat\n")
    for options, message in {
        ("--images", shown): "has no image of cat",
        ("--images", shown, "--names", file): "none of its folders",
        ("--other-images", shown): "tokens, and the model takes 32",
        ("--template", "{} " + "very " * 40): "tokens, and the model takes 32",
        ("--images", tmp_path / "gone"): "no such folder",
    }.items():
        assert message in error(lambda options=options: names(*options))
    sides = ("--forget", shown, "--preserve", shown, "--concept", "dog")
    assert "tokens, and the model takes 32" in error(lambda: pictures(*sides))


def test_underscores_of_folders_are_spaces_in_prompts_and_concepts(tmp_path):
    root = folders(tmp_path / "all", red_triangle="red triangle", blue_circle="blue circle")
    options = ("--forget", root, "--preserve", root, "--concept", "red triangle")
    one = pictures(*options)
    assert {f.label for f in one.dataset.forget} == {"red_triangle"}
    assert [(p.text, p.label) for p in one._names().files] == [
        ("a photo of a blue circle.", "blue_circle"),
        ("a photo of a red triangle.", "red_triangle"),
    ]
    folders(root, **{"red triangle": "cat"})
    two = pictures(*options)
    # The name itself matches, so that underscores stay, in the concept and in the prompt.
    assert {f.label for f in two.dataset.forget} == {"red triangle"}
    assert "a photo of a red_triangle." in [p.text for p in two._names().files]


# What is read.


def test_names_need_a_tokenizer_that_tells_them_apart(tmp_path):
    folder = without(tmp_path / "m", "tokenizer.json")
    said = error(lambda: names(checkpoint=folder))
    assert "its tokenizer has no vocabulary: every name would be the same to the model" in said
    assert "copy tokenizer.json, or vocab.json and merges.txt" in said
    assert "no: " in inspect(folder)["reads names"]
    # Images without names need none.
    flat = ("--forget", IMAGES / "cat", "--preserve", IMAGES / "dog")
    assert pictures(*flat, checkpoint=folder).extract().judged == {}


def changed(folder, **fields):
    path = without(folder) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= fields
    path.write_text(json.dumps(config))
    return folder


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = changed(tmp_path / "end", eos_token_id=7)
    said = error(lambda: names(checkpoint=folder))
    assert "does not end a text with id 7, where the model reads its features" in said


def test_names_need_no_image_processor(tmp_path):
    folder = without(tmp_path / "m", "preprocessor_config.json")
    assert names(checkpoint=folder).extract().judged == {}
    said = error(lambda: names("--images", IMAGES, checkpoint=folder))
    assert "preprocessor_config.json: no such file" in said


def test_open_clips_own_directory(tmp_path):
    """As open_clip pushes it to the hub: its config, its weights and the tokenizer."""
    folder = open_clip_of_bundled(tmp_path / "open")
    shown = ("--images", folders(tmp_path / "shown", cat="cat", dog="dog"))
    ours, usual = (names(*shown, checkpoint=c).extract() for c in (folder, CHECKPOINT))
    for one, other in ((ours.train, usual.train), (ours.test, usual.test)):
        x, y = one.both(TEXT), other.both(TEXT)
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())
    (x,), (y,) = (e.judged["shown.0"].taps.values() for e in (ours, usual))
    np.testing.assert_allclose(x.x, y.x, atol=1e-4 * np.abs(y.x).max())


def test_a_tower_with_its_projection_is_a_checkpoint(tmp_path, capsys):
    """SDXL's text_encoder_2, and its like for images: run, export, inspect."""
    for kind in (CLIPTextModelWithProjection, CLIPVisionModelWithProjection):
        kind.from_pretrained(CHECKPOINT).save_pretrained(tmp_path / kind.__name__)
    text, vision = (tmp_path / f"CLIP{side}ModelWithProjection" for side in ("Text", "Vision"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, text)
    shutil.copy(CHECKPOINT / "preprocessor_config.json", vision)
    of_names = ("--forget-text", "cat", "--preserve-text", "dog", "horse")
    shown = folders(tmp_path / "shown", cat="cat", dog="dog")
    of_images = ("--forget", shown, "--preserve", shown, "--concept", "cat")
    for checkpoint, options, projection in (
        (text, of_names, "text_projection"),
        (vision, of_images, "visual_projection"),
    ):
        out = tmp_path / f"run of {checkpoint.name}"
        main([str(w) for w in ["run", "--checkpoint", checkpoint, "--out", out, *options]])
        assert json.loads((out / "metrics.json").read_text())["adapter"]["targets"] == [projection]
        merged = tmp_path / f"merged-{checkpoint.name}"
        main(["export", str(out), "--out", str(merged)])
        keys = load_file(merged / "model.safetensors"), load_file(checkpoint / "model.safetensors")
        assert {k for k in keys[1] if not np.array_equal(keys[0][k], keys[1][k])} == {
            f"{projection}.weight"
        }
        main(["run", "--statistics", str(out), "--out", str(tmp_path / f"again-{projection}")])
    capsys.readouterr()
    for checkpoint, options, message in (
        (vision, of_names, "is CLIP's image encoder alone, and names need the text encoder"),
        (text, of_images, "is CLIP's text encoder alone, and images need the image encoder"),
        (text, (*of_names, "--images", shown), "which reads no image; leave it out"),
    ):
        words = ["run", "--checkpoint", checkpoint, "--out", tmp_path / "no", *options]
        with pytest.raises(SystemExit, match="2"):
            main([str(word) for word in words])
        assert message in capsys.readouterr().err
    facts = inspect(text), inspect(vision)
    assert [f["adaptable Linears"].keys() for f in facts] == [{TEXT}, {"visual_projection"}]
    assert facts[0]["reads names"] == facts[1]["reads images"] == "yes"


# Speed.


def test_texts_are_padded_to_a_few_lengths_without_a_change():
    encoder = open_clip_encoder(CHECKPOINT, "float32", QUIET)
    words = ("cat", "dog", "horse")
    texts = [" ".join(words[i % 3] for i in range(k)) for k in (1, 5, 9, 13, 17, 21)] * 20
    text_forward.on(jax.default_backend()).clear_cache()
    ours = encoder.text_taps(texts)
    # Of 3 to 23 tokens, in two batches of 64 by length.
    assert text_forward.compilations() == 2
    whole = encoder.tokenizer(texts, padding="max_length", max_length=32, return_tensors="np")
    ids, mask = whole["input_ids"], whole["attention_mask"]
    for start in (0, 64):
        rows = slice(start, start + 64)
        theirs = encoder.clip.encode_text(padded(ids[rows]), padded(mask[rows])).taps[TEXT]
        np.testing.assert_array_equal(ours[rows], np.asarray(theirs)[: len(ours[rows])])


def test_padding_that_would_move_the_end_takes_the_whole_context(monkeypatch):
    encoder = open_clip_encoder(CHECKPOINT, "float32", QUIET)
    assert encoder.tokens(["cat"])[0].shape == (1, 8)
    monkeypatch.setattr(encoder.tokenizer, "padding_side", "left")
    assert encoder.tokens(["cat"])[0].shape == (1, 32)
