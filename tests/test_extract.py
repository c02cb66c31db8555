"""Rows of images of many sizes: the tower's own, in the files' order, in few compilations."""

import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jax_unlearn import extract
from jax_unlearn.data.folder import ImageFile, ImageReader, find_images
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.errors import UserError
from jax_unlearn.extract import Extractor, tap_rows
from jax_unlearn.session import LINEAR
from porting import load_vision_tower
from tests import tiny

NAMES = (f"merger.{LINEAR}", f"deepstack_merger_list.1.{LINEAR}")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tiny_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("extract")
    shutil.copytree(tiny_dir, path / "checkpoint")
    tiny.save_processor(path / "checkpoint", 64, 64 * 64)
    (path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(25):
        h, w = random.integers(8, 80, size=2)
        pixels = random.integers(0, 256, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{i:02d}.png")
    (path / "images" / "07.png").write_text("broken")
    return path


@pytest.fixture(scope="module")
def tower(folder):
    return load_vision_tower(folder / "checkpoint")


def extractor(folder, tower, max_pixels=2**20):
    preprocessor = load_preprocessor(folder / "checkpoint", tower.config, max_pixels)
    return Extractor(tower, preprocessor, NAMES)


def run(folder, tower, granularity, files=None, **options):
    files = files or find_images(folder / "images", "x")
    reader = ImageReader()
    return extractor(folder, tower, **options).extract(files, granularity, reader, "", QUIET)


def test_rows_are_the_towers_own_in_the_order_of_the_files(folder, tower, monkeypatch):
    monkeypatch.setattr(extract, "PATCHES_PER_BATCH", 512)  # several batches of several lengths
    features = run(folder, tower, "tokens")
    assert [file.path.name for file in features.files][6:8] == ["06.png", "08.png"]
    assert len(features.files) == 24
    preprocess = extractor(folder, tower).preprocessor
    for index, file in enumerate(features.files):
        alone = tower(*preprocess(Image.open(file.path)))
        for name in NAMES:
            rows = features.taps[name][features.image == index]
            np.testing.assert_allclose(rows, alone.taps[name], rtol=1e-4, atol=1e-5)


def test_images_are_the_means_of_tokens(folder, tower):
    tokens, images = (run(folder, tower, granularity) for granularity in ("tokens", "images"))
    assert images.files == tokens.files
    for name in NAMES:
        assert images.taps[name].shape == (24, 128)
        np.testing.assert_allclose(
            tokens.image_means().taps[name], images.taps[name], rtol=1e-5, atol=1e-6
        )


def test_a_few_compilations_serve_all_sizes(folder, tower):
    before = tap_rows._cache_size()
    run(folder, tower, "images")
    compiled = tap_rows._cache_size() - before
    # 24 images of 24 sizes, from 4 to 256 patches: one program for each step of the ladder.
    assert compiled <= 5
    run(folder, tower, "images")
    assert tap_rows._cache_size() == before + compiled


def test_large_images_are_scaled_down(folder, tower):
    one = find_images(folder / "images", "x")[:1]
    full, small = (run(folder, tower, "tokens", one, max_pixels=n) for n in (2**20, 256))
    assert len(small.image) < len(full.image)
    assert 16 * 4 * len(small.image) <= 256
    with pytest.raises(UserError, match="--max-pixels 10"):
        extractor(folder, tower, max_pixels=10)


def test_nothing_readable_is_an_error(folder, tower):
    files = [ImageFile(folder / "images" / "07.png", "x")]
    with pytest.raises(UserError, match="none of its 1 images can be read"):
        run(folder, tower, "images", files)
