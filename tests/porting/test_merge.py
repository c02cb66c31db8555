"""The merged checkpoint, judged by its bytes and by the model that transformers makes of it."""

import json
import os
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import MERGE_RECORD
from porting import CheckpointError, merge, merge_checkpoint, unmerge_checkpoint
from porting.checkpoint import INDEX, SINGLE
from porting.copied_checkpoint import EARLIER_UNDO
from porting.qwen3_vision import load_vision_tower
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
    (path / "original" / "deep" / "params.dat").write_bytes(bytes(range(256)))
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
    assert after.keys() - before.keys() == {MERGE_RECORD}
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
    undo = tmp_path / "kept" / "undo.safetensors"
    merge_checkpoint(adapter, checkpoint, tmp_path / "merged", undo=undo)
    assert tree(checkpoint) == before
    assert set(load_file(undo)) == changed_keys(adapter)
    unmerge_checkpoint(tmp_path / "merged", undo, tmp_path / "back")
    assert tree(tmp_path / "back") == before


def test_nothing_of_the_original_is_in_the_result(checkpoint, adapter, tmp_path):
    """Not in any file, in any form that weights are published in."""
    weights = next(checkpoint.glob("*.safetensors"))
    for other in ("pytorch_model.bin", "original/deep/consolidated.00.pth", "open.safetensors"):
        shutil.copy(weights, checkpoint / other)
    (checkpoint / EARLIER_UNDO).mkdir()
    shutil.copy(weights, checkpoint / EARLIER_UNDO / "originals.safetensors")
    with (
        pytest.warns(UserWarning, match="not copied, since they hold weights") as said,
        pytest.warns(UserWarning, match=f"{checkpoint / EARLIER_UNDO}: holds the original weights"),
    ):
        merge_checkpoint(adapter, checkpoint, tmp_path / "merged")
    text = " ".join(str(one.message) for one in said)
    for other in ("pytorch_model.bin", "original/deep/consolidated.00.pth", "open.safetensors"):
        assert other in text
    originals = {}
    for shard in checkpoint.glob("model*.safetensors"):
        originals |= parts(shard)[1]
    kept = [originals[key] for key in changed_keys(adapter)]
    assert all(len(one) > 40 for one in kept)
    for path in (tmp_path / "merged").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(one in content for one in kept), path


def test_older_prefix(single, adapter, tmp_path):
    tensors = {k.replace(VISUAL, "visual."): v for k, v in load_file(single / SINGLE).items()}
    save_file(tensors, single / SINGLE)
    merge_checkpoint(adapter, single, tmp_path / "merged", undo=tmp_path / "undo")
    assert set(load_file(tmp_path / "undo")) == changed_keys(adapter, "visual.")


def test_a_second_merge_adds_to_the_first(single, adapter, tmp_path):
    second = tiny.adapter(seed=1)
    merge_checkpoint(adapter, single, tmp_path / "one", undo=tmp_path / "undo1")
    merge_checkpoint(second, tmp_path / "one", tmp_path / "two", undo=tmp_path / "undo2")
    before, after = tiny.tensors(single), tiny.tensors(tmp_path / "two")
    assert {k for k in before if not np.array_equal(before[k], after[k])} == changed_keys(adapter)
    for name, pair in adapter.pairs.items():
        other, key = second.pairs[name], f"{VISUAL}{name}.weight"
        change = adapter.scale * pair.b @ pair.a + second.scale * other.b @ other.a
        np.testing.assert_allclose(after[key], before[key] + change, atol=1e-6)
    merges = json.loads((tmp_path / "two" / MERGE_RECORD).read_text())["merges"]
    assert [len(merge["sha256"]) for merge in merges] == [len(changed_keys(adapter)), 6]
    # The undo files belong to one merge each.
    for merged, undo in ("two", "undo1"), ("one", "undo2"):
        with pytest.raises(CheckpointError, match="is not the tensor of the merge that"):
            unmerge_checkpoint(tmp_path / merged, tmp_path / undo, tmp_path / "never")
    unmerge_checkpoint(tmp_path / "two", tmp_path / "undo2", tmp_path / "back1")
    assert tree(tmp_path / "back1") == tree(tmp_path / "one")
    unmerge_checkpoint(tmp_path / "back1", tmp_path / "undo1", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(single)


def test_files_that_a_merge_writes_are_undone(single, tmp_path):
    files = {"README.md": "ours", "NOTE.md": "new"}
    undo = tmp_path / "undo"
    merge_checkpoint(tiny.adapter(), single, tmp_path / "merged", undo=undo, files=files)
    assert (tmp_path / "merged" / "README.md").read_text() == "ours"
    unmerge_checkpoint(tmp_path / "merged", undo, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(single)


def test_a_change_below_the_rounding_is_named(tiny_model, tmp_path):
    base = furnished(deepcopy(tiny_model).bfloat16(), tmp_path / "base")
    tiny_pair = LoraPair(np.full((1, 128), 1e-9, np.float32), np.ones((24, 1), np.float32))
    adapter = LoraAdapter({"merger.linear_fc2": tiny_pair}, alpha=1.0, rank=1)
    with pytest.warns(
        UserWarning, match=r"merger\.linear_fc2\.weight is smaller than its rounding"
    ):
        merge_checkpoint(adapter, base, tmp_path / "merged")


def test_an_existing_directory_is_kept(single, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").touch()
    with pytest.raises(UserError, match="--overwrite"):
        merge_checkpoint(adapter, single, tmp_path / "out")
    undo = tmp_path / "undo"
    for _ in range(2):
        merge_checkpoint(adapter, single, tmp_path / "out", overwrite=True, undo=undo)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    with pytest.raises(UserError, match="undo: exists; choose another name, or pass --overwrite"):
        merge_checkpoint(adapter, single, tmp_path / "other", undo=undo)
    unmerge_checkpoint(tmp_path / "out", undo, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(single)


@pytest.mark.parametrize("place", ["base/undo", "out/undo", "out/deep/../undo"])
def test_the_undo_is_outside_what_is_served(place, single, adapter, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(UserError, match="where a server would load it"):
        merge_checkpoint(adapter, single, tmp_path / "out", undo=tmp_path / place)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", [".", "sub/merged", ".."])
def test_out_and_checkpoint_are_apart(single, adapter, place):
    before = tree(single)
    with pytest.raises(UserError, match="overlaps"):
        merge_checkpoint(adapter, single, single / place, overwrite=True)
    with pytest.raises(UserError):
        unmerge_checkpoint(single, single / "undo", single / place, overwrite=True)
    assert tree(single) == before


@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("step", ["patch", "undo_bytes", "copy_tree"])
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
        merge_checkpoint(adapter, single, tmp_path / "out", old, undo=tmp_path / "undo")
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
    merge_checkpoint(adapter, single, tmp_path / "merged", undo=tmp_path / "undo")
    assert set(load_file(tmp_path / "undo")) == changed_keys(adapter)


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


def test_no_undo_file(single, tmp_path):
    with pytest.raises(UserError, match="undo: no such file"):
        unmerge_checkpoint(single, tmp_path / "undo", tmp_path / "out")
    for content in (b"words", (single / SINGLE).read_bytes()):
        (tmp_path / "undo").write_bytes(content)
        with pytest.raises(UserError, match="is not an undo file of `export --format merged`"):
            unmerge_checkpoint(single, tmp_path / "undo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_undo_of_another_checkpoint(single, adapter, tmp_path):
    merge_checkpoint(adapter, single, tmp_path / "merged", undo=tmp_path / "undo")
    tensors, key = load_file(tmp_path / "merged" / SINGLE), f"{VISUAL}merger.linear_fc2.weight"
    smaller = f"{VISUAL}merger.linear_fc1.weight"
    tensors[key] = tensors[key] + 1
    tensors[smaller] = np.ascontiguousarray(tensors[smaller][1:])
    del tensors[f"{VISUAL}deepstack_merger_list.0.linear_fc2.weight"]
    save_file(tensors, tmp_path / "merged" / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "out")
    assert len(caught.value.faults) == 3
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
    with pytest.raises(CheckpointError, match=r"is a link to .*, outside the directory"):
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
    merge_checkpoint(adapter, snapshot, tmp_path / "merged", undo=tmp_path / "undo")
    assert not any(path.is_symlink() for path in (tmp_path / "merged").rglob("*"))
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "undo", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(snapshot)
    assert tree(repo) == before


def test_the_adapted_weights_lie_in_several_shards(tiny_model, adapter, tmp_path):
    base = furnished(tiny_model, tmp_path / "base", "60KB")
    assert (base / INDEX).is_file()
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    assert len({weight_map[key] for key in changed_keys(adapter)}) > 1
