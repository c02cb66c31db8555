"""What several test files need: a tiny Qwen3-VL, as a model and as a checkpoint, and a run."""

import gc
from collections.abc import Iterator
from pathlib import Path

# Those that nobody here uses: what is first loaded by a module of ours, whose shapes are checked at
# run time, is compiled to bytecode anew each time.
import flax.nnx  # noqa: F401
import optax  # noqa: F401
import pytest
import tyro  # noqa: F401
from transformers import Qwen3VLForConditionalGeneration

import porting
from jax_unlearn.evaluate import reidentification
from jax_unlearn.features import clip_encoder
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.report import plots
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.xla_flags import make_reproducible
from tests import loading, rendering, running, shape_checks, tiny

# As a command does, also for what is compiled for a GPU that is not here.
make_reproducible()
plots.svg = rendering.of_its_kind
porting.load_clip = loading.once(porting.load_clip)
porting.load_vision_tower = loading.once(porting.load_vision_tower)
clip_encoder.load_tokenizer = loading.once(clip_encoder.load_tokenizer)
# Of the labelled images of readers, which are fitted again in each. Runs in processes of their own
# have all of them, and the readers' own tests.
reidentification.DRAWS = 2


def pytest_collection_finish() -> None:
    """What was imported stays, so that a pass, which ends by collecting, need not look through it.

    With PyTorch and transformers that takes half a second, and a run has four passes.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """Each test checks the shapes of the first calls anew."""
    shape_checks.begin()


@pytest.fixture(scope="module")
def small_batches() -> Iterator[None]:
    """Of CLIP, which pads them: most of the time went into images that are not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_encoder, "BATCH", 16)
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Qwen3VLForConditionalGeneration:
    """Shared: tests that change it take a copy."""
    return tiny.model(tiny.config())


@pytest.fixture(scope="session")
def tiny_dir(
    tiny_model: Qwen3VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same model, saved in float32 as one file. Shared: tests only read it."""
    path = tmp_path_factory.mktemp("tiny") / "qwen3_vl"
    tiny_model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_tower(tiny_dir: Path) -> Qwen3VisionTower:
    return porting.load_vision_tower(tiny_dir)


@pytest.fixture(scope="session")
def folder(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an image processor, and two folders with a few of the shipped images."""
    return running.write_samples(tmp_path_factory.mktemp("cli"), tiny_dir)


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    """Shared: tests that change it take a copy."""
    main(running.arguments(folder, folder / "run"))
    return folder / "run"


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a few images and the shipped model, which answers; tests that change it copy it.

    Its folder has the images, of five classes with three held out.
    """
    path = tmp_path_factory.mktemp("asked")
    running.write_images(path, running.ANSWERED, 15)
    options = {"checkpoint": ASSETS / "checkpoint"} | running.CLOSED_FORM
    main(running.arguments(path, path / "run", **options))
    return path / "run"
