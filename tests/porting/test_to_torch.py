"""`to_torch` is the inverse of loading: PyTorch's models take its tensors and compute the same."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import CLIPModel

import porting
from jax_unlearn.runtime.assets import CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import SINGLE


def test_the_tower_loads_into_its_torch_class(tiny_model, tiny_dir, tiny_tower):
    found = porting.to_torch(tiny_tower, prefix="model.visual.")
    stored = {k: v for k, v in load_file(tiny_dir / SINGLE).items() if "visual." in k}
    assert found.keys() == stored.keys()
    for key, tensor in stored.items():
        np.testing.assert_array_equal(found[key], tensor)
    tensors = {k: torch.tensor(v) for k, v in porting.to_torch(tiny_tower).items()}
    tiny_model.model.visual.load_state_dict(tensors)


def test_clip_loads_into_its_torch_class():
    checkpoint = CLIP_ASSETS / "checkpoint"
    found = porting.to_torch(porting.load_clip(checkpoint))
    model = CLIPModel.from_pretrained(checkpoint)
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found[key], tensor.numpy())
    model.load_state_dict({k: torch.tensor(v) for k, v in found.items()})


def test_a_family_has_its_own_names(tiny_tower):
    names = porting.to_torch(tiny_tower, "qwen3_omni_moe")
    assert "merger_list.0.mlp.2.weight" in names
    assert "merger.ln_q.weight" in names


def test_another_family_is_refused(tiny_tower):
    with pytest.raises(UserError, match="model_type 'clip': expected one of qwen3_vl"):
        porting.to_torch(tiny_tower, "clip")
