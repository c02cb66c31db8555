"""What several test files need: a tiny Qwen3-VL, as a model and as a checkpoint."""

from pathlib import Path

import pytest
from transformers import Qwen3VLForConditionalGeneration

from jax_unlearn.models.qwen3_vision import Qwen3VisionTower
from porting import load_vision_tower
from tests import tiny


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
    return load_vision_tower(tiny_dir)
