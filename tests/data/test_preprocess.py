"""Our image processors beside transformers' own of the PIL backend, to the last bit.

`python -m benchmarks.versions` runs the comparisons beside other versions, without conftest.py.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jax_unlearn.data.clip_preprocess import load_clip_preprocessor
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError
from porting.qwen3_vision import vision_config

QWEN = json.loads((ASSETS / "checkpoint" / "preprocessor_config.json").read_text())
CLIP = json.loads((CLIP_ASSETS / "checkpoint" / "preprocessor_config.json").read_text())
_, TOWER = vision_config(ASSETS / "checkpoint")
SIZES = [(1, 1), (1, 90), (33, 47), (64, 64), (200, 31), (517, 300), (31, 6000), (1000, 1000)]


def picture(size):
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def written(folder, settings, nested=False):
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"image_processor": settings} if nested else settings
    (folder / name).write_text(json.dumps(content))
    return folder


QWEN_VARIANTS = [
    {},
    {"image_mean": 0.4, "image_std": 0.3},
    {"do_normalize": False},
    {"do_rescale": False},
    {"resample": 2, "rescale_factor": 0.01},
    {"size": None, "min_pixels": 4096, "max_pixels": 9000},
    {"image_mean": [0.1, 0.2, 0.3], "size": {"shortest_edge": 256, "longest_edge": 2**20}},
]


@pytest.mark.parametrize("change", QWEN_VARIANTS)
@pytest.mark.parametrize("nested", [False, True])
def test_qwen_patches_are_those_of_transformers(tmp_path, change, nested):
    settings = {k: v for k, v in (QWEN | change).items() if v is not None}
    folder = written(tmp_path, settings, nested)
    ours = load_preprocessor(folder, TOWER, 2**30)
    reference = Qwen2VLImageProcessorPil.from_pretrained(folder)
    for size in SIZES:
        image = picture(size)
        pixels, grid = ours(image)
        out = reference(images=[image], return_tensors="np")
        np.testing.assert_array_equal(pixels, out["pixel_values"])
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(grid, out["image_grid_thw"])
        assert ours.patches(size) == len(pixels)


CLIP_VARIANTS = [
    {},
    {"size": 64},
    {"size": {"height": 70, "width": 91}},
    {"size": {"shortest_edge": 41}},
    {"do_center_crop": False, "size": {"height": 64, "width": 64}},
    {"crop_size": 64, "image_mean": 0.5, "image_std": 0.5, "resample": 2},
]


@pytest.mark.parametrize("change", CLIP_VARIANTS)
def test_clip_pixels_are_those_of_transformers(tmp_path, change):
    folder = written(tmp_path, CLIP | change)
    ours, reference = (
        load_clip_preprocessor(folder, 64),
        CLIPImageProcessorPil.from_pretrained(folder),
    )
    for size in SIZES:
        image = picture(size)
        out = reference(images=[image], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(ours(image), out)


def test_without_resizing_sides_must_be_whole_patches(tmp_path):
    ours = load_preprocessor(written(tmp_path, QWEN | {"do_resize": False}), TOWER, 2**30)
    reference = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    out = reference(images=[picture((64, 48))], return_tensors="np")
    np.testing.assert_array_equal(ours(picture((64, 48)))[0], out["pixel_values"])
    with pytest.raises(ValueError, match=r"65 × 48 pixels: .* multiples of 16"):
        ours.patches((65, 48))


def test_an_image_that_is_too_long_is_refused():
    ours = load_preprocessor(ASSETS / "checkpoint", TOWER, 2**30)
    assert ours.patches((200, 1)) > 0
    with pytest.raises(ValueError, match="an aspect ratio above 200"):
        ours.patches((201, 1))


def test_a_blank_image_is_nothing_after_normalisation():
    ours = load_preprocessor(ASSETS / "checkpoint", TOWER, 2**30)
    assert ours.blank((2, 2)).getpixel((0, 0)) == (128, 128, 128)
    shifted = replace(ours.pixels, mean=np.array([0.0, 0.2, 1.0], np.float32))
    assert shifted.blank((2, 2)).getpixel((0, 0)) == (0, 51, 255)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"min_pixels": 256, "max_pixels": 1024}}, "size has .'max_pixels', 'min_pixels'"),
        ({"size": 224}, "size has 224"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers for 3 channels"),
        ({"image_std": 0}, "image_std is zero"),
        ({"image_std": "wide"}, "image_std is 'wide', and must be a number"),
        ({"patch_size": 0}, "patch_size is 0, and must be a positive whole number"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"image_processor_type": "SiglipImageProcessor"}, "is of 'SiglipImageProcessor'"),
        ({"patch_size": 4}, "but config.json's tower has"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line_with_the_file(tmp_path, change, said):
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: .*{said}"):
        load_preprocessor(written(tmp_path, QWEN | change), TOWER, 2**30)


def test_clips_images_must_be_of_the_towers_size(tmp_path):
    with pytest.raises(UserError, match="gives images of 64 × 64 pixels, and the tower takes 96"):
        load_clip_preprocessor(written(tmp_path, CLIP), 96)


@pytest.mark.parametrize("content", ["[", "[]", '{"a": ' * 10**5])
def test_a_file_that_is_no_json_object_is_one_line(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocessor_config\.json: (cannot be|holds no)"):
        load_preprocessor(tmp_path, TOWER, 2**30)
    with pytest.raises(UserError, match=r"preprocessor_config\.json: no such file"):
        load_preprocessor(tmp_path / "nowhere", TOWER, 2**30)
