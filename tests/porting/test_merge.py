"""The merged checkpoint, judged by its bytes and by the model that transformers makes of it."""

import json
import os
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.errors import UserError
from porting import CheckpointError, load_vision_tower, merge, merge_checkpoint, unmerge_checkpoint
from porting.checkpoint import INDEX, SINGLE
from porting.merge import ORIGINALS, UNDO
from tests import tiny

VISUAL = "model.visual."
LAYOUTS = {
    "one file": ("float32", "1GB"),
    "one bfloat16 file": ("bfloat16", "1GB"),
    "one float16 file": ("float16", "1GB"),
    "shards": ("float32", "100KB"),
    "bfloat16 shards": ("bfloat16", "60KB"),
}


@pytest.fixture(params=["plain", "bias"])
def adapter(request):
    """With or without a change of each bias, about as large as that of the outputs."""
    adapter, random = tiny.adapter(), np.random.default_rng(0)
    if request.param == "plain":
        return adapter
    for name, pair in adapter.pairs.items():
        bias = random.normal(size=len(pair.b)).astype(np.float32)
        adapter.pairs[name] = replace(pair, bias=bias)
    return adapter


@pytest.fixture(params=LAYOUTS)
def checkpoint(request, tiny_model, tmp_path):
    dtype, size = LAYOUTS[request.param]
    model = deepcopy(tiny_model).to(getattr(torch, dtype))
    return furnished(model, tmp_path / "base", size)


@pytest.fixture
def single(tiny_model, tmp_path):
    return furnished(tiny_model, tmp_path / "base")


def furnished(model, path, size="1GB"):
    """A saved model with the other things that lie in a checkpoint."""
    model.save_pretrained(path, max_shard_size=size)
    (path / "README.md").write_bytes(b"words\r\n\x00")
    (path / "original" / "deep").mkdir(parents=True)
    (path / "original" / "deep" / "params.bin").write_bytes(bytes(range(256)))
    (path / "empty").mkdir()
    return path


def tree(directory):
    """Every file's bytes by its relative path; None for a folder."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


def parts(shard):
    """Header bytes and each tensor's bytes of a safetensors file."""
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    places = {key: entry["data_offsets"] for key, entry in header.items()}
    return data[:start], {key: data[start + a : start + b] for key, (a, b) in places.items()}


def changed_keys(adapter, prefix=VISUAL):
    weights = {f"{prefix}{name}.weight" for name in adapter.pairs}
    biased = {name for name, pair in adapter.pairs.items() if pair.bias is not None}
    return weights | {f"{prefix}{name}.bias" for name in biased}


def test_only_the_adapted_weights_change(checkpoint, adapter, tmp_path):
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    before, after = tree(checkpoint), tree(tmp_path / "merged")
    assert after.keys() - before.keys() == {UNDO, f"{UNDO}/{ORIGINALS}"}
    assert before.keys() <= after.keys()
    changed = set()
    for name in before:
        if not name.endswith(".safetensors"):
            assert after[name] == before[name]
            continue
        header, tensors = parts(checkpoint / name)
        new_header, new_tensors = parts(tmp_path / "merged" / name)
        assert new_header == header
        changed |= {key for key in tensors if tensors[key] != new_tensors[key]}
    assert changed == changed_keys(adapter)


def test_the_sum_is_rounded_once(checkpoint, adapter, tmp_path):
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    before, after = tiny.tensors(checkpoint), tiny.tensors(tmp_path / "merged")
    for key in changed_keys(adapter):
        name, tensor = key.removeprefix(VISUAL).rsplit(".", 1)
        pair = adapter.pairs[name]
        delta = pair.b.astype(np.float64) @ pair.a.astype(np.float64)
        if tensor == "bias":
            delta = pair.bias.astype(np.float64)
        exact = before[key].astype(np.float64) + adapter.scale * delta
        rounded = exact.astype(np.float32).astype(before[key].dtype)
        error = np.abs(after[key].astype(np.float64) - exact).max()
        assert after[key].dtype == before[key].dtype
        assert error <= np.abs(rounded.astype(np.float64) - exact).max() * 1.01


def test_transformers_sees_what_the_adapter_does(checkpoint, adapter, tmp_path):
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = tiny.images()
    theirs = tiny.tower_outputs(model.eval().model.visual, pixels, tiny.GRID)
    tower = load_vision_tower(checkpoint)
    ours = tower(pixels, tiny.GRID, adapter=adapter)
    # Half precision rounds the sum once more; each weight is then off by 2⁻⁹ (2⁻¹² in float16).
    kind = json.loads((checkpoint / "config.json").read_text())["dtype"]
    tolerance = 1e-4 if kind == "float32" else 1e-2
    outputs = (theirs.pooler_output, *theirs.deepstack_features)
    for name, output in zip(tower.config.mergers, outputs, strict=True):
        mine, output = np.asarray(ours.outputs[name]), output.detach().numpy()
        assert np.abs(mine - output).max() <= tolerance * np.abs(output).max()


def test_undo_is_exact(checkpoint, adapter, tmp_path):
    before = tree(checkpoint)
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    assert tree(checkpoint) == before
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "back")
    assert tree(tmp_path / "back") == before


def test_the_record_is_out_of_servers_sight(checkpoint, adapter, tmp_path):
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    weights = {path.name for path in (tmp_path / "merged").glob("*.safetensors")}
    assert weights == {path.name for path in checkpoint.glob("*.safetensors")}
    assert set(load_file(tmp_path / "merged" / UNDO / ORIGINALS)) == changed_keys(adapter)


def test_older_prefix(single, adapter, tmp_path):
    tensors = {k.replace(VISUAL, "visual."): v for k, v in load_file(single / SINGLE).items()}
    save_file(tensors, single / SINGLE)
    merge_checkpoint(adapter, single, tmp_path / "merged")
    originals = load_file(tmp_path / "merged" / UNDO / ORIGINALS)
    assert set(originals) == changed_keys(adapter, "visual.")


def test_a_merged_checkpoint_is_not_merged_again(single, adapter, tmp_path):
    merge_checkpoint(adapter, single, tmp_path / "merged")
    with pytest.raises(UserError, match="undo that first"):
        merge_checkpoint(adapter, tmp_path / "merged", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_an_existing_directory_is_kept(single, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").touch()
    with pytest.raises(UserError, match="--overwrite"):
        merge_checkpoint(adapter, single, tmp_path / "out")
    merge_checkpoint(adapter, single, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    unmerge_checkpoint(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(single)


@pytest.mark.parametrize("place", [".", "sub/merged", ".."])
def test_out_and_checkpoint_are_apart(single, adapter, place):
    before = tree(single)
    with pytest.raises(UserError, match="overlaps"):
        merge_checkpoint(adapter, single, single / place, overwrite=True)
    with pytest.raises(UserError):
        unmerge_checkpoint(single, single / place, overwrite=True)
    assert tree(single) == before


@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("step", ["patch", "save", "copy_tree"])
def test_a_failure_leaves_nothing(step, old, single, adapter, tmp_path, monkeypatch):
    if old:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "adapter_config.json").touch()
    before, work, calls = tree(tmp_path), getattr(merge, step), []

    def fail(*args, **kwargs):
        work(*args, **kwargs)
        calls.append(step)
        if len(calls) == (2 if step == "patch" else 1):
            raise RuntimeError("in the middle")

    monkeypatch.setattr(merge, step, fail)
    with pytest.raises(RuntimeError):
        merge_checkpoint(adapter, single, tmp_path / "out", overwrite=old)
    assert calls
    assert tree(tmp_path) == before


def pair(e, d_in, rank=2):
    return LoraPair(a=np.ones((rank, d_in), np.float32), b=np.ones((e, rank), np.float32))


def test_faults_of_the_adapter_are_collected(single, tmp_path):
    pairs = {
        "merger.linear_fc2": pair(24, 64),
        "deepstack_merger_list.7.linear_fc2": pair(24, 128),
        "blocks.0.mlp.linear_fc2": pair(32, 48),
        "merger.linear_fc1": pair(128, 128, rank=3),
    }
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(LoraAdapter(pairs, alpha=1.0, rank=2), single, tmp_path / "out")
    message = str(caught.value)
    assert len(caught.value.faults) == 4
    assert "merger.linear_fc2.weight has shape [24, 128], the adapter's b @ a [24, 64]" in message
    assert "deepstack_merger_list.7.linear_fc2.weight is missing" in message
    assert "blocks.0.mlp.linear_fc2 is not a Merger's" in message
    assert "merger.linear_fc1 has rank [3], the adapter 2" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def biased_pair(e, d_in, rank=2):
    return replace(pair(e, d_in, rank), bias=np.ones(e, np.float32))


def test_faults_of_the_bias_are_collected(single, tmp_path):
    tensors = load_file(single / SINGLE)
    del tensors[f"{VISUAL}merger.linear_fc2.bias"]
    tensors[f"{VISUAL}merger.linear_fc1.bias"] = np.ones(24, np.float32)
    save_file(tensors, single / SINGLE)
    pairs = {
        "merger.linear_fc2": biased_pair(24, 128),
        "merger.linear_fc1": biased_pair(128, 128),
        "deepstack_merger_list.7.linear_fc2": biased_pair(24, 128),
    }
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(LoraAdapter(pairs, alpha=1.0, rank=2), single, tmp_path / "out")
    assert len(caught.value.faults) == 3
    message = str(caught.value)
    assert "merger.linear_fc2.bias is missing, and the adapter changes the bias" in message
    assert "merger.linear_fc1.bias has shape [24], the adapter's bias [128]" in message
    assert "deepstack_merger_list.7.linear_fc2.weight is missing" in message
    assert not (tmp_path / "out").exists()


def test_a_projection_of_clip_has_no_bias(tmp_path):
    tiny.model(tiny.clip_config()).save_pretrained(tmp_path / "clip")
    adapter = LoraAdapter({"text_projection": biased_pair(24, 32)}, alpha=1.0, rank=2)
    with pytest.raises(
        CheckpointError, match=r"text_projection\.bias is missing.*cannot be merged"
    ):
        merge_checkpoint(adapter, tmp_path / "clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_one_of_the_pairs_has_a_bias(single, tmp_path):
    pairs = {"merger.linear_fc2": biased_pair(24, 128), "merger.linear_fc1": pair(128, 128)}
    adapter = LoraAdapter(pairs, alpha=1.0, rank=2)
    merge_checkpoint(adapter, single, tmp_path / "merged")
    assert set(load_file(tmp_path / "merged" / UNDO / ORIGINALS)) == changed_keys(adapter)


@pytest.mark.parametrize(
    ("tensor", "shape"), [("weight", (24, 128)), ("bias", 24)], ids=["weight", "bias"]
)
def test_a_dtype_that_cannot_be_merged(tensor, shape, single, tmp_path):
    key = f"{VISUAL}merger.linear_fc2.{tensor}"
    adapter = LoraAdapter({"merger.linear_fc2": biased_pair(24, 128)}, alpha=1.0, rank=2)
    save_file(load_file(single / SINGLE) | {key: np.ones(shape, np.int8)}, single / SINGLE)
    with pytest.raises(CheckpointError, match=f"{key} has dtype I8"):
        merge_checkpoint(adapter, single, tmp_path / "out")


@pytest.mark.parametrize("tensor", ["weight", "bias"])
@pytest.mark.parametrize("b", [np.nan, 1e30], ids=["nan", "overflow"])
def test_a_diverged_adapter_is_not_merged(b, tensor, tiny_model, tmp_path):
    base = furnished(deepcopy(tiny_model).half(), tmp_path / "base")
    full = np.full((24, 1), b, np.float32)
    diverged = LoraPair(a=np.ones((1, 128), np.float32), b=full)
    if tensor == "bias":
        diverged = LoraPair(a=diverged.a, b=np.zeros_like(full), bias=full[:, 0])
    adapter = LoraAdapter({"merger.linear_fc2": diverged}, alpha=1.0, rank=1)
    with pytest.raises(CheckpointError, match=f"{tensor} would not be finite in float16"):
        merge_checkpoint(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_record_to_undo(single, tmp_path):
    with pytest.raises(UserError, match="is not a merged checkpoint"):
        unmerge_checkpoint(single, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such directory"):
        unmerge_checkpoint(tmp_path / "nowhere", tmp_path / "out")


def test_a_record_of_another_checkpoint(single, adapter, tmp_path):
    merge_checkpoint(adapter, single, tmp_path / "merged")
    record = tmp_path / "merged" / UNDO / ORIGINALS
    other = {"elsewhere": np.ones(3), f"{VISUAL}merger.norm.bias": np.ones(3, np.float32)}
    save_file(load_file(record) | other, record)
    with pytest.raises(CheckpointError) as caught:
        unmerge_checkpoint(tmp_path / "merged", tmp_path / "out")
    assert len(caught.value.faults) == 2
    assert not (tmp_path / "out").exists()


def test_links_that_lead_out_are_not_followed(single, adapter, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (single / "file").symlink_to(tmp_path / "secret" / "file")
    (single / "folder").symlink_to("../secret")
    (single / "loop").symlink_to(".")
    (single / "inside").symlink_to("README.md")
    merge_checkpoint(adapter, single, tmp_path / "a" / "merged")
    copied = tmp_path / "a" / "merged"
    assert os.readlink(copied / "file") == str(tmp_path / "secret" / "file")
    assert os.readlink(copied / "folder") == str(tmp_path / "secret")
    assert (copied / "loop").resolve() == copied
    assert (copied / "inside").read_bytes() == (single / "README.md").read_bytes()


def test_a_linked_shard_is_never_written_through(single, adapter, tmp_path):
    (single / SINGLE).rename(tmp_path / "elsewhere.safetensors")
    before = (tmp_path / "elsewhere.safetensors").read_bytes()
    (single / SINGLE).symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint"):
        merge_checkpoint(adapter, single, tmp_path / "out")
    assert (tmp_path / "elsewhere.safetensors").read_bytes() == before


def test_a_snapshot_of_the_hugging_face_cache(single, adapter, tmp_path):
    """There, every file is a link to a read-only blob."""
    repo = tmp_path / "models--q--q"
    snapshot = repo / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (repo / "blobs").mkdir()
    single.rename(snapshot)
    for i, path in enumerate(p for p in sorted(snapshot.iterdir()) if p.is_file()):
        path.rename(repo / "blobs" / str(i))
        (repo / "blobs" / str(i)).chmod(0o444)
        path.symlink_to(f"../../blobs/{i}")
    before = tree(repo)
    merge_checkpoint(adapter, snapshot, tmp_path / "merged")
    assert not any(path.is_symlink() for path in (tmp_path / "merged").rglob("*"))
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(snapshot)
    assert tree(repo) == before


def test_the_adapted_weights_lie_in_several_shards(tiny_model, adapter, tmp_path):
    base = furnished(tiny_model, tmp_path / "base", "60KB")
    assert (base / INDEX).is_file()
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    assert len({weight_map[key] for key in changed_keys(adapter)}) > 1
