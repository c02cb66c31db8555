"""OpenCLIP's transform for inference, from its config, beside Pillow's steps done by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.data.clip_preprocess import load_clip_preprocessor
from jax_unlearn.runtime.errors import UserError

SIDE, MEAN, STD = 64, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def written(folder, **settings):
    content = {"model_cfg": {}, "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


# (settings, size of the image, size after resizing, corner of the image on the canvas). An odd
# margin is rounded half to even when it is dropped, and the smaller half is added at the top.
STEPS = [
    ({}, (517, 300), (110, 64), (-23, 0)),
    ({}, (67, 64), (67, 64), (-2, 0)),
    ({}, (64, 65), (64, 65), (0, 0)),
    ({"resize_mode": "shortest", "size": 96}, (31, 200), (64, 412), (0, -174)),
    ({"resize_mode": "longest"}, (517, 300), (64, 37), (0, 13)),
    ({"resize_mode": "longest", "fill_color": 7}, (300, 517), (37, 64), (13, 0)),
    ({"resize_mode": "squash", "interpolation": "bilinear"}, (517, 300), (64, 64), (0, 0)),
    ({"interpolation": "random", "mean": [0.5] * 3, "std": [0.25] * 3}, (9, 9), (64, 64), (0, 0)),
]


@pytest.mark.parametrize(("settings", "size", "resized", "corner"), STEPS)
def test_each_step_is_open_clips(settings, size, resized, corner, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    bilinear = settings.get("interpolation") == "bilinear"
    canvas = Image.new("RGB", (SIDE, SIDE), (settings.get("fill_color", 0),) * 3)
    canvas.paste(image.resize(resized, BILINEAR if bilinear else BICUBIC), corner)
    mean, std = (
        np.array(settings.get(k, v), np.float32) for k, v in (("mean", MEAN), ("std", STD))
    )
    wanted = ((np.asarray(canvas, np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    ours = load_clip_preprocessor(written(tmp_path, **settings), SIDE)(image)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos', and must be bicubic or"),
        ({"resize_mode": "crop"}, "resize_mode is 'crop', and must be shortest or longest or squ"),
        ({"mode": "L"}, "mode is 'L', and must be RGB"),
        ({"std": [0.1, 0, 0.1]}, "std is zero, and pixels are divided by it"),
        ({"fill_color": -1}, "fill_color is -1"),
        ({"timm": 1}, "preprocess_cfg has timm, which OpenCLIP has not"),
    ],
)
def test_settings_that_open_clip_has_not_are_one_line(settings, said, tmp_path):
    with pytest.raises(UserError, match=r"open_clip_config\.json: " + said):
        load_clip_preprocessor(written(tmp_path, **settings), SIDE)


def test_transformers_file_goes_first_and_one_of_them_must_be_there(tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(UserError, match=r"open_clip_config\.json: preprocess_cfg, .* is missing"):
        load_clip_preprocessor(tmp_path, SIDE)
    own = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "image_mean": 0.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    assert load_clip_preprocessor(tmp_path, SIDE).size == (SIDE, SIDE)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json: no such file"):
        load_clip_preprocessor(tmp_path, SIDE)
