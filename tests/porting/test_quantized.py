"""Quantised towers: read as the numbers that their format defines, or refused as quantised."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_unlearn.models.lora import LoraAdapter
from porting import CheckpointError, merge_checkpoint
from porting.checkpoint import SINGLE
from porting.quantized import DequantizedCheckpoint, spread
from porting.qwen3_vision import load_vision_tower
from tests import tiny

# Written by bitsandbytes 0.50.2 from random [24, 40] weights: `quantize_4bit` (nf4; nf4 with
# quantised maxima; fp4) and `int8_vectorwise_quant`, each with what its inverse returns.
RECORDED = Path(__file__).parent / "bitsandbytes.safetensors"
MODULE = "model.visual.merger.linear_fc2"


@pytest.mark.parametrize("name", ["nf4", "nf4_nested", "fp4", "int8"])
def test_the_numbers_are_those_of_bitsandbytes(name, tmp_path):
    shutil.copy(RECORDED, tmp_path / SINGLE)
    with DequantizedCheckpoint(tmp_path) as checkpoint:
        key = f"{name}.weight"
        assert [one for one in checkpoint if one.startswith(f"{name}.")] != []
        assert {one for one in checkpoint if one.startswith(f"{name}.")} == {
            key,
            f"{name}.expected",
        }
        ours = np.empty(checkpoint.shape(key), np.float32)
        checkpoint.read_into(key, ours)
        expected = checkpoint.read(f"{name}.expected").astype(np.float32)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("form", ["tensor", "row", "block", "int8"])
def test_a_tower_with_scales(form, copy, tensors):
    weight = tensors[f"{MODULE}.weight"]
    dtype = np.int8 if form == "int8" else ml_dtypes.float8_e4m3fn
    largest = 127 if form == "int8" else 448
    scale = {
        "tensor": np.array(np.abs(weight).max() / largest),
        "row": np.abs(weight).max(1) / largest,
        "block": np.full((1, 1), 2.0**-6),
        "int8": np.abs(weight).max(1, keepdims=True) / largest,
    }[form].astype(np.float32)
    each = scale.reshape(-1, 1)
    stored = (weight / each).round() if form == "int8" else weight / each
    suffix = "weight_scale_inv" if form == "block" else "weight_scale"
    changed = {f"{MODULE}.weight": stored.astype(dtype), f"{MODULE}.{suffix}": scale}
    # Of the activations, without effect on the weights.
    changed[f"{MODULE}.input_scale"] = np.ones(1, np.float32)
    save_file(tensors | changed, copy / SINGLE)
    kernel = load_vision_tower(copy).merger.linear_fc2.kernel[...]
    expected = stored.astype(dtype).astype(np.float32) * each
    np.testing.assert_array_equal(kernel, expected.T)
    assert not np.array_equal(kernel, weight.T)


def test_blocks_that_do_not_divide_the_weight():
    blocks = np.arange(6, dtype=np.float32).reshape(2, 3)
    each = spread(blocks, (200, 300))
    assert each.shape == (200, 300)
    assert [each[i, j] for i, j in ((0, 0), (127, 127), (128, 127), (199, 299))] == [0, 0, 3, 5]
    with pytest.raises(ValueError, match=r"scales of shape \(2, 3\), expected \(1, 3\)"):
        spread(blocks, (100, 300))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qweight": np.ones((4, 4), np.int32), "scales": np.ones(4, np.float16)}, "GPTQ or AWQ"),
        ({"weight": np.ones((24, 128), np.int8)}, "is quantised, and its scales are missing"),
        (
            {"weight": np.ones((24, 128), np.int8), "weight_scale": np.ones(5, np.float32)},
            "what belongs to it does not fit",
        ),
        (
            {
                "weight": np.ones((12, 1), np.uint8),
                "weight.quant_state.bitsandbytes__nf4": np.frombuffer(b"[1]", np.uint8),
            },
            "does not describe a quantised tensor",
        ),
    ],
    ids=["gptq", "no scales", "wrong scales", "wrong state"],
)
def test_what_cannot_be_read_is_called_quantised(changes, message, copy, tensors):
    kept = {k: v for k, v in tensors.items() if k != f"{MODULE}.weight"}
    save_file(kept | {f"{MODULE}.{name}": value for name, value in changes.items()}, copy / SINGLE)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vision_tower(copy)
    assert len(caught.value.faults) == 1
    assert MODULE in str(caught.value)


def test_a_quantised_linear_cannot_be_merged(copy, tensors, tmp_path):
    weight = {f"{MODULE}.weight": np.ones((24, 128), np.int8)}
    save_file(tensors | weight | {f"{MODULE}.weight_scale": np.ones(1, np.float32)}, copy / SINGLE)
    adapter = tiny.adapter()
    pairs = {"merger.linear_fc2": adapter.pairs["merger.linear_fc2"]}
    one = LoraAdapter(pairs, alpha=adapter.alpha, rank=adapter.rank)
    with pytest.raises(CheckpointError, match="has dtype I8"):
        merge_checkpoint(one, copy, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
