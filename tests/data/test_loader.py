"""Loading ahead: the same results in the same order from threads and from processes."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jax_unlearn.data.batches import Batch, Item
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.loader import CountPatches, PackStep, load
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.runtime.assets import ASSETS
from porting.qwen3_vision import vision_config

ROOT = Path(__file__).parents[2]


def square(x):
    return x * x


@dataclass(frozen=True)
class Marked:
    """Makes a file for each item, so that others see how far it has come; returns an array."""

    folder: Path

    def __call__(self, x):
        (self.folder / str(x)).touch()
        return {"x": np.full(5000, x), "none": np.zeros((0, 3)), "text": str(x)}


def test_a_worker_that_is_killed(tmp_path):
    """What it had delivered is used; if that is not all, one line says so, and no other is printed.

    At rest the first of many items is in use and six are ready, the last of them in the worker.
    """
    program = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from jax_unlearn.data.loader import load
from jax_unlearn.runtime.errors import StoppedError
from tests.data.test_loader import Marked
for count, ready in (3, 2), (99, 6):
    folder = Path(sys.argv[1], str(count))
    folder.mkdir()
    results = load(range(count), Marked(folder), workers=1)
    used = [next(results)]
    while not (folder / str(ready)).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        for one in results:
            used.append(one)
    except StoppedError as error:
        print(error)
    for one in used:
        assert (one["x"] == int(one["text"])).all() and one["none"].shape == (0, 3)
    print(*[one["text"] for one in used])
"""
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    line = (
        "--workers 1: a process that decodes images has died (SIGKILL); "
        "continue with --resume, with fewer --workers if memory was short"
    )
    assert (done.stdout, done.stderr) == (f"0 1 2\n{line}\n0 1 2 3 4 5\n", "")


def test_a_worker_that_is_killed_before_it_begins():
    """Items of more than a pipe's 64 kB, which would not all have been handed over."""
    program = """
import os, signal, threading
from pathlib import Path
from jax_unlearn.data.loader import load
from jax_unlearn.runtime.errors import StoppedError
from tests.data.test_loader import square
def kill():
    while True:
        for path in Path("/proc/self/task").glob("*/children"):
            for child in path.read_text().split():
                # In two words, as a process that was only forked has its parent's command.
                if b"spawn_" + b"main" in Path("/proc", child, "cmdline").read_bytes():
                    return os.kill(int(child), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
try:
    list(load(list(range(99_999)), square, 1))
except StoppedError as error:
    print(str(error)[:60])
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    line = "--workers 1: a process that decodes images has died (SIGKILL"
    assert (done.stdout, done.stderr) == (f"{line}\n", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(load(range(10), square, workers)) == [x * x for x in range(10)]
    assert list(load([], square, workers)) == []


def test_a_worker_ends_with_a_parent_that_was_killed():
    """It holds the pipe that it was given, whose end comes when all that hold it have ended."""
    program = """
import time
from jax_unlearn.data.loader import load
from tests.data.test_loader import square
for number in load(range(99), square, workers=1):
    print(number, flush=True)
    time.sleep(99)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout.readline() == b"0\n"
    parent.send_signal(signal.SIGKILL)
    try:
        parent.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(parent.pid, signal.SIGKILL)
        raise


@pytest.fixture
def preprocessor():
    _, config = vision_config(ASSETS / "checkpoint")
    return load_preprocessor(ASSETS / "checkpoint", config, 64 * 64)


def images(folder, sizes):
    random = np.random.default_rng(0)
    for i, (w, h) in enumerate(sizes):
        pixels = random.integers(0, 256, size=(h, w, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90°
        Image.fromarray(pixels).save(folder / f"{i}.png", **({"exif": exif} if i % 2 else {}))
    return [ImageFile(folder / f"{i}.png", "x") for i in range(len(sizes))]


def test_patches_are_known_from_the_header(preprocessor, tmp_path):
    files = images(tmp_path, [(40, 40), (10, 90), (91, 33), (300, 20), (64, 64), (17, 500)])
    for file in files:
        pixels, _ = preprocessor(Image.open(file.path))
        assert CountPatches(preprocessor)(file) == len(pixels)
    assert "aspect ratio" in CountPatches(preprocessor)(images(tmp_path, [(1000, 3)])[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_leaves_its_batch_in_shape(preprocessor, tmp_path, workers):
    files = images(tmp_path, [(40, 40), (48, 32), (64, 32)])
    counts = [CountPatches(preprocessor)(file) for file in files]
    batch = Batch([Item(i, n) for i, n in enumerate(counts)], 3, 64)
    pack_step = PackStep(files, preprocessor, merge=2, side=8, devices=2)
    ((whole, slots, failed),) = load([[batch]], pack_step, workers)
    assert failed == {}
    assert sum(array.nbytes for array in jax.tree.leaves(whole)) == pack_step.size([batch])
    # Cut after its header.
    files[1].path.write_bytes(files[1].path.read_bytes()[:200])
    ((broken, places, failed),) = load([[batch]], pack_step, workers)
    assert list(failed) == [1]
    np.testing.assert_array_equal(places[0], slots[0])
    assert whole.patches.shape == broken.patches.shape == (6, 64, preprocessor.patch_dim)
    ends = np.cumsum([0, *counts])
    for i in range(3):
        rows = slots[0][ends[i] : ends[i + 1]]
        one, other = (p.patches.reshape(-1, preprocessor.patch_dim)[rows] for p in (whole, broken))
        assert np.array_equal(one, other) == (i != 1)
        assert other.any() == (i != 1)
    # The second device has no batch of its own.
    np.testing.assert_array_equal(whole.patches[:3], whole.patches[3:])
