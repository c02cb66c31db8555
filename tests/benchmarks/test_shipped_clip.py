"""The bundled CLIP is one that transformers loads, and names what it has not seen."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from jax_unlearn.runtime.assets import ASSETS

CLIP = ASSETS / "clip"
CHECKPOINT = CLIP / "checkpoint"


@cache
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(CHECKPOINT, local_files_only=True).eval()


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)


@cache
def classes() -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in (CLIP / "images" / "test").iterdir()))


def files(split: str) -> list[Path]:
    return sorted((CLIP / "images" / split).glob("*/*"))


@torch.inference_mode()
def embed_texts(texts: list[str]) -> Tensor:
    tokens = tokenizer()(texts, padding=True, return_tensors="pt")
    return functional.normalize(clip().get_text_features(**tokens).pooler_output, dim=-1)


@cache
@torch.inference_mode()
def embed_test_images() -> Tensor:
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    pixels = processor([Image.open(p).convert("RGB") for p in files("test")], return_tensors="pt")
    return functional.normalize(clip().get_image_features(**pixels).pooler_output, dim=-1)


def guesses(names: list[str], prompt: str) -> list[str]:
    """The name nearest to each test image."""
    texts = embed_texts([prompt.format(name) for name in names])
    return [names[i] for i in (embed_test_images() @ texts.T).argmax(1).tolist()]


def accuracy(names: list[str], prompt: str, prefix: str | tuple[str, ...] = "") -> float:
    """Share of right names among the test images of these classes and of this origin."""
    rows = zip(guesses(names, prompt), files("test"), strict=True)
    hits = [
        guess == path.parent.name
        for guess, path in rows
        if path.parent.name in names and path.name.startswith(prefix)
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("prompt", ["a photo of a {}.", "{}"])
def test_names_shapes_among_all_classes(prompt: str) -> None:
    assert accuracy(list(classes()), prompt, "easy-vqa") >= 0.98


@pytest.mark.parametrize("prompt", ["a photo of a {}.", "{}"])
def test_names_drawings_of_unseen_artists_among_all_classes(prompt: str) -> None:
    assert accuracy(list(classes()), prompt, ("twemoji", "fxemoji")) >= 0.75


@pytest.mark.parametrize("word", ["triangle", "red", "heart", "apple", "tree"])
def test_tells_names_that_share_a_word_apart(word: str) -> None:
    assert accuracy([name for name in classes() if word in name.split()], "{}") >= 0.80


def test_the_tokenizer_is_clips() -> None:
    ids = tokenizer()(["A Photo of  a red triangle.", "", "\N{SNOWMAN} zyzzyva!"]).input_ids
    config = clip().config.text_config
    assert config.vocab_size == len(tokenizer())
    assert all(row[0] == config.bos_token_id and row[-1] == config.eos_token_id for row in ids)
    assert ids[1] == [config.vocab_size - 2, config.vocab_size - 1]
    assert tokenizer().decode(ids[0], skip_special_tokens=True) == "a photo of a red triangle ."
    assert max(map(max, ids)) < config.vocab_size


def test_padding_and_context_change_nothing() -> None:
    alone = embed_texts(["red heart"])
    long = tokenizer()(["word " * 100], truncation=True).input_ids[0]
    assert len(long) == clip().config.text_config.max_position_embeddings
    padded = embed_texts(["red heart", "a photo of a christmas tree."])
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=0)


def test_loads_in_float32_whatever_is_on_disk() -> None:
    assert {p.dtype for p in clip().parameters()} == {torch.float32}
    assert clip().config.text_config.hidden_act == "quick_gelu"


def test_every_class_has_train_and_test_images() -> None:
    for split, least in {"train": 5, "test": 2}.items():
        counts = {f.name: len(list(f.iterdir())) for f in (CLIP / "images" / split).iterdir()}
        assert tuple(sorted(counts)) == classes()
        assert min(counts.values()) >= least
    assert {"red triangle", "red heart", "cat"} <= set(classes())


def test_no_train_image_is_a_test_image() -> None:
    train, test = (
        {Image.open(path).convert("RGB").tobytes() for path in files(split)}
        for split in ("train", "test")
    )
    assert not train & test


def test_artists_are_on_one_side_and_their_licences_are_listed() -> None:
    concepts = pytest.importorskip("benchmarks.shipped.clip.concepts")
    listed = (ASSETS / "LICENSES.md").read_text()
    for split in ("train", "test"):
        sets = [s for s in concepts.SETS if s.split == split and s.ships]
        shipped = {path.name for path in files(split) if path.suffix == ".webp"}
        assert shipped
        assert all(name.startswith(tuple(f"{s.name}-" for s in sets)) for name in shipped)
        for s in sets:
            assert f"| {s.name} | {s.version} | {split} |" in listed


def test_is_small() -> None:
    assert sum(os.path.getsize(path) for path in CLIP.rglob("*") if path.is_file()) <= 10e6
