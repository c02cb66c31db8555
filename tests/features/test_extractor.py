"""Rows of images of many sizes: the tower's own, in the files' order, in few compilations."""

import shutil
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.loader import PackStep
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.features.extractor import ExtractionSettings, Extractor
from jax_unlearn.features.pass_state import PassState
from jax_unlearn.features.throughput import MOST_WORKERS, PER_WORKER, usual_workers
from jax_unlearn.features.tower_pass import tap_rows
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.runtime.errors import UserError
from porting import load_vision_tower
from porting.qwen3_vision import abstract_tower
from tests import tiny

NAMES = ("merger.linear_fc2", "deepstack_merger_list.1.linear_fc2")
INNER = "deepstack_merger_list.1.linear_fc1"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tiny_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("extract")
    shutil.copytree(tiny_dir, path / "checkpoint")
    tiny.save_processor(path / "checkpoint", 64, 64 * 64)
    (path / "images").mkdir()
    random = np.random.default_rng(0)
    # Each size compiles dozens of operations where an image goes through the tower alone.
    sizes = random.integers(8, 80, size=(9, 2))
    for i in range(25):
        h, w = sizes[i % len(sizes)]
        pixels = random.integers(0, 256, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{i:02d}.png")
    (path / "images" / "07.png").write_text("broken")
    return path


@pytest.fixture(scope="module")
def tower(folder):
    return load_vision_tower(folder / "checkpoint")


def extractor(folder, tower, **settings):
    given = ExtractionSettings(**settings)
    preprocessor = load_preprocessor(folder / "checkpoint", tower.config, given.max_pixels)
    return Extractor(tower, preprocessor, (*NAMES, INNER), given)


def run(folder, tower, granularity, files=None, **options):
    files = files or find_images(folder / "images", "x")
    kept = NAMES if granularity == "tokens" else ()
    extract = extractor(folder, tower, **options).extract
    return extract(files, ImageReader(), "", QUIET, kept)


def test_rows_are_the_towers_own_in_the_order_of_the_files(folder, tower):
    features = run(folder, tower, "tokens", batch_patches=512)  # several batches of several lengths
    assert [file.path.name for file in features.files][6:8] == ["06.png", "08.png"]
    assert len(features.files) == 24
    preprocess = extractor(folder, tower).preprocessor
    for index, file in enumerate(features.files):
        alone = tower(*preprocess(Image.open(file.path)))
        for name, tap in features.taps.items():
            rows = tap.x[tap.image == index]
            np.testing.assert_allclose(rows, alone.taps[name], rtol=1e-4, atol=1e-5)


def test_images_are_the_means_of_tokens(folder, tower):
    tokens, images = (run(folder, tower, granularity) for granularity in ("tokens", "images"))
    assert images.files == tokens.files
    for name in NAMES:
        assert images.taps[name].x.shape == (24, 128)
        assert np.array_equal(images.taps[name].image, np.arange(24))
        np.testing.assert_allclose(
            tokens.image_means().taps[name].x, images.taps[name].x, rtol=1e-5, atol=1e-6
        )


def test_before_a_gelu_rows_are_tokens_always(folder, tower):
    tokens, images = (run(folder, tower, granularity) for granularity in ("tokens", "images"))
    assert len(images.taps[INNER].x) == len(tokens.taps[NAMES[0]].x) > 24
    assert np.array_equal(images.taps[INNER].x, tokens.taps[INNER].x)
    assert np.array_equal(images.taps[INNER].image, tokens.taps[NAMES[0]].image)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """500 images of random size, from 4 to 512 patches."""
    path = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(1)
    for i in range(500):
        h, w = random.integers(8, 90, size=2)
        Image.fromarray(random.integers(0, 256, size=(h, w, 3), dtype=np.uint8)).save(
            path / f"{i:03d}.png"
        )
    return find_images(path, "x")


@pytest.mark.parametrize("kernel", ["tiled", "xla"])
def test_a_handful_of_compilations_serve_500_sizes(folder, tower, many, kernel, monkeypatch):
    monkeypatch.setattr(VisionConfig, "padding_for_shape", 4096)
    graphdef, _ = nnx.split(abstract_tower(replace(tower.config, attention=kernel)))
    tower = nnx.merge(graphdef, nnx.split(tower)[1])
    run_of = extractor(folder, tower)
    before = tap_rows.compilations()
    features = run_of.extract(many, ImageReader(), "", QUIET)
    assert len(features.files) == 500
    work = run_of.work.metrics()
    assert work["compilations"] == tap_rows.compilations() - before <= 6
    assert work["padding"] < 0.25
    planned = set(run_of.planner.known)
    # A blank image shares a shape or has its own, and what shares it changes nothing.
    preprocess = run_of.preprocessor
    taps = run_of.extract_image(preprocess.blank((20, 30)))
    alone = tower(*preprocess(preprocess.blank((20, 30))))
    for name, rows in taps.items():
        np.testing.assert_allclose(rows, alone.taps[name], rtol=1e-4, atol=1e-5)
    assert tap_rows.compilations() == before + len(run_of.planner.known)
    again = extractor(folder, tower)
    # Other batches would be other programs.
    again.plan(PassState(many, again.names), ImageReader())
    assert again.planner.known == planned


def test_waiting_is_the_devices_not_the_hosts(folder, tower):
    def slow():
        time.sleep(0.1)
        yield None

    for idle, least, most in ((-1.0, 0.1, 9.0), (0.05, 0.01, 0.1), (None, 0.0, 0.0)):
        one = extractor(folder, tower)
        one.ready = Future()
        if idle is not None:
            one.ready.set_result(time.perf_counter() + idle)
        assert list(one.waiting_for(slow())) == [None]
        assert least <= one.work.waited <= most


def test_devices_wait_for_slow_images(folder, tower, monkeypatch):
    whole = PackStep.__call__

    def slow(self, batches):
        time.sleep(0.3)
        return whole(self, batches)

    monkeypatch.setattr(PackStep, "__call__", slow)
    one = extractor(folder, tower, batch_patches=512)
    one.extract(find_images(folder / "images", "x"), ImageReader(), "", QUIET)
    # Two are loaded at once.
    assert 0.1 < one.work.waited < one.work.seconds


def test_large_images_are_scaled_down(folder, tower):
    one = find_images(folder / "images", "x")[:1]
    full, small = (run(folder, tower, "tokens", one, max_pixels=n) for n in (2**20, 256))
    assert len(small.taps[NAMES[0]].image) < len(full.taps[NAMES[0]].image)
    assert 16 * 4 * len(small.taps[NAMES[0]].image) <= 256
    with pytest.raises(UserError, match="--max-pixels 10"):
        extractor(folder, tower, max_pixels=10)


def test_nothing_readable_is_an_error(folder, tower):
    files = [ImageFile(folder / "images" / "07.png", "x")]
    with pytest.raises(UserError, match="none of its 1 images can be read"):
        run(folder, tower, "images", files)


def test_workers_without_room_in_shared_memory_are_refused(folder, tower, monkeypatch):
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    one = extractor(folder, tower)
    one.workers = 1
    with pytest.raises(UserError, match=r"/dev/shm has 0 MB free, and --workers 1 may need"):
        one.extract(find_images(folder / "images", "x"), ImageReader(), "", QUIET)


def test_workers_are_started_where_they_are_worth_it(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(MOST_WORKERS + 1))
    most = 100 * PER_WORKER
    assert usual_workers(most) == 0  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert usual_workers(most) == MOST_WORKERS
    assert [usual_workers(n * PER_WORKER - 1) for n in (1, 3)] == [0, 2]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
    assert usual_workers(most) == 2
