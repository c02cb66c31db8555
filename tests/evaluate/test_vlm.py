"""The Hugging Face model is asked with the checkpoint's own chat template and image processor."""

import json
import shutil

import pytest

from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(ASSETS / "checkpoint", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_template_in_its_own_json_is_read(checkpoint):
    file = checkpoint / "chat_template.jinja"
    template = file.read_text()
    file.unlink()
    with pytest.raises(UserError, match="has no chat template"):
        load_vlm(checkpoint)
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_vlm(checkpoint).tokenizer.chat_template == template
