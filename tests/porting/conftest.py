"""The tiny checkpoint's tensors, and a copy of it to spoil."""

import shutil

import pytest
from safetensors.numpy import load_file

from porting.checkpoint import SINGLE


@pytest.fixture(scope="module")
def tensors(tiny_dir):
    return load_file(tiny_dir / SINGLE)


@pytest.fixture
def copy(tiny_dir, tmp_path):
    """A checkpoint of one's own, to spoil."""
    return shutil.copytree(tiny_dir, tmp_path / "copy")
