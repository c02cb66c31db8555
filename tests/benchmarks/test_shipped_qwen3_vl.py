"""The bundled checkpoint answers about images it has not seen, and looks at them to do so."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.model import VLM, load_vlm
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError

EACH = 8  # test images of a class that are asked about
Shown = list[tuple[str, Image.Image]]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_vlm(ASSETS / "checkpoint")


@cache
def held_out(count: int = EACH) -> Shown:
    """(class, image) of the first ``count`` test images of every class."""
    folders = sorted((ASSETS / "images" / "test").iterdir())
    files = [(f.name, path) for f in folders for path in sorted(f.iterdir())[:count]]
    return [(name, Image.open(path).convert("RGB")) for name, path in files]


@cache
def right_answers() -> dict[str, dict[str, str]]:
    rows = json.loads((ASSETS / "questions.json").read_text())
    return {row["question"]: row["answers"] for row in rows}


def accuracy(vlm: VLM, question: str, shown: Shown) -> float:
    """Share of right answers on the images of the classes that the question is for."""
    wanted = right_answers()[question]
    asked = [(name, image) for name, image in shown if name in wanted]
    replies = ask(vlm, [image for _, image in asked], question)
    pairs = zip(asked, replies, strict=True)
    return float(np.mean([wanted[name] == reply for (name, _), reply in pairs]))


def of_kind(photo: bool) -> Shown:
    kinds = right_answers()["is this a photo or a drawing?"]
    return [(n, image) for n, image in held_out() if (kinds[n] == "photo") == photo]


@pytest.mark.parametrize(
    "question",
    [
        "what shape is in the image?",
        "what color is the shape?",
        "is this a photo or a drawing?",
        "is there a circle in the image?",
        "is there a red shape in the image?",
    ],
)
def test_answers_about_held_out_images(vlm: VLM, question: str) -> None:
    assert accuracy(vlm, question, held_out()) >= 0.95


@pytest.mark.parametrize("photo", [False, True], ids=["drawings", "photos"])
def test_names_held_out_images(vlm: VLM, photo: bool) -> None:
    assert accuracy(vlm, "what is this?", of_kind(photo)) >= 0.95


@pytest.mark.parametrize(
    ("question", "most"), [("what is this?", 0.1), ("what shape is in the image?", 0.45)]
)
def test_the_answer_comes_from_the_picture(vlm: VLM, question: str, most: float) -> None:
    """With other classes' pictures the score falls to chance: 1/37 for a name, 1/3 for a shape."""
    shown = [(n, image) for n, image in held_out() if n in right_answers()[question]]
    order = np.random.default_rng(0).permutation(len(shown))
    swapped = [(shown[i][0], shown[j][1]) for i, j in enumerate(order)]
    assert accuracy(vlm, question, swapped) <= most


def test_answers_keep_the_order_of_images_of_several_sizes(vlm: VLM) -> None:
    pictures = [image for name, image in held_out(1) if name in ("cat", "red circle")]
    larger = [image.resize((96, 128)) for image in pictures]
    mixed = [pictures[0], larger[1], larger[0], pictures[1]]
    answers = ask(vlm, mixed, "what is this?")
    one_by_one = [ask(vlm, [image], "what is this?")[0] for image in mixed]
    assert answers == one_by_one
    assert answers[0] != answers[3]


def test_every_class_has_images_and_answers() -> None:
    classes = set(right_answers()["what is this?"])
    assert {"astronaut", "cat", "rocket", "red triangle"} <= classes
    for split in ("train", "test"):
        folders = {f.name: len(list(f.iterdir())) for f in (ASSETS / "images" / split).iterdir()}
        assert set(folders) == classes
        assert min(folders.values()) >= 20


def test_no_train_image_is_a_test_image() -> None:
    train, test = (
        {path.read_bytes() for path in (ASSETS / "images" / split).glob("*/*")}
        for split in ("train", "test")
    )
    assert not train & test


def test_train_crops_touch_no_pixel_of_the_test_side() -> None:
    images = pytest.importorskip("benchmarks.shipped.qwen3_vl.images")
    for photo in images.PHOTOS:
        size = photo.load().size
        sides = {}
        for split in ("train", "test"):
            sides[split] = np.zeros(size[::-1], bool)
            stream = images.windows(photo, size, split, seed=0)
            for left, top, side in (next(stream) for _ in range(200)):
                sides[split][top : top + side, left : left + side] = True
        assert not (sides["train"] & sides["test"]).any(), photo.name


def test_a_train_crop_does_not_depend_on_the_test_side() -> None:
    images = pytest.importorskip("benchmarks.shipped.qwen3_vl.images")
    for photo in images.PHOTOS:
        image = photo.load()
        changed = image.copy()
        for box in images.test_cells(photo, image.size):
            changed.paste((255, 0, 255), box)
        stream = images.windows(photo, image.size, "train", seed=0)
        for window in (next(stream) for _ in range(40)):
            assert images._jpeg(image, window) == images._jpeg(changed, window), photo.name


def test_assets_are_small() -> None:
    own = [path for path in ASSETS.rglob("*") if path.is_file() and CLIP_ASSETS not in path.parents]
    assert sum(map(os.path.getsize, own)) <= 13e6
    assert os.path.getsize(ASSETS / "checkpoint" / "model.safetensors") <= 8e6


def test_a_directory_without_a_checkpoint_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_vlm(tmp_path)
