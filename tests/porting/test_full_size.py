"""Qwen3-VL-2B's tower at its full size, in every family's class: no error of size or depth."""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks.scale.real_size import VISION
from porting.qwen3_vision import abstract_tower, load_vision_tower
from tests import tiny

# Few patches: the size that matters here is the tower's. Every kind of input is in the tests of
# the families' tiny models.
GRIDS = {"image and video": [[1, 2, 4], [3, 2, 6]]}
PATCH_DIM = 3 * 2 * 16 * 16
OMNI_PARTS = {
    "deepstack_merger_list.": "merger_list.",
    ".norm.": ".ln_q.",
    ".linear_fc1.": ".mlp.0.",
    ".linear_fc2.": ".mlp.2.",
}


def omni_key(key):
    """Qwen3-Omni's name for a tensor of Qwen3-VL: the Mergers' differ."""
    if "merger" in key:
        for ours, theirs in OMNI_PARTS.items():
            key = key.replace(ours, theirs)
    return key


def hf_tower(family, weights):
    """The family's real class at full size. It takes over the tensors that it has a place for."""
    cls = type(tiny.tower_of(tiny.model(tiny.family_config(family))))
    shape = dict(VISION)
    if family not in tiny.DEEPSTACK:
        del shape["deepstack_visual_indexes"]
        weights = {k: v for k, v in weights.items() if "deepstack" not in k}
    if family == "qwen3_omni_moe":
        weights = {omni_key(k): v for k, v in weights.items()}
    config = cls.config_class(**shape)
    with torch.device("meta"):
        visual = cls(config)
    visual.load_state_dict(weights, strict=True, assign=True)
    # Its buffers are not in the state, and have no values on the meta device.
    visual.rotary_pos_emb = type(visual.rotary_pos_emb)(config)
    return visual.eval().requires_grad_(False)


def random_weights():
    """One set for all the classes, by Qwen3-VL's names: a 1.6 GB model six times is too much."""
    cls = type(tiny.tower_of(tiny.model(tiny.config())))
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in cls(cls.config_class(**VISION)).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in shapes.items():
        is_scale = "norm" in key and key.endswith("weight")
        weights[key] = torch.empty(shape).normal_(float(is_scale), 0.02, generator=generator)
    return weights


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def ours(weights, tmp_path_factory):
    """Our features of a grid, with DeepStack or without, loaded through Qwen3-Omni's names.

    The classes share the weights, so two towers and one pass a grid serve all six.
    """
    path = tmp_path_factory.mktemp("full") / "tower"
    hf_tower("qwen3_omni_moe", weights).save_pretrained(path)
    tower = load_vision_tower(path)
    shutil.rmtree(path)
    graphdef, _ = nnx.split(abstract_tower(replace(tower.config, deepstack_indexes=())))
    leaves = nnx.to_flat_state(nnx.state(tower))
    kept = [(place, leaf) for place, leaf in leaves if place[0] != "deepstack_merger_list"]
    towers = {True: tower, False: nnx.merge(graphdef, nnx.from_flat_state(kept))}

    @cache
    def features(deepstack, kind):
        grid = np.array(GRIDS[kind])
        return towers[deepstack](tiny.images(grid, PATCH_DIM), grid)

    return features


@pytest.fixture(scope="module", params=tiny.TEXTS)
def theirs(request, weights):
    return request.param in tiny.DEEPSTACK, hf_tower(request.param, weights)


@pytest.mark.parametrize("kind", GRIDS)
def test_every_feature(theirs, ours, kind):
    deepstack, visual = theirs
    grid = np.array(GRIDS[kind])
    found = ours(deepstack, kind)
    tiny.same_features(found, tiny.tower_outputs(visual, tiny.images(grid, PATCH_DIM), grid))
    assert len(found.deepstack_features) == (3 if deepstack else 0)
