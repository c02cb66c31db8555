"""`compare`: an edit that is there, one that a server swallowed, and one that is another."""

import shutil
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from porting import merge_checkpoint, save_peft
from porting.gguf_projectors import gguf_names
from tests import tiny

IMAGES = sorted((ASSETS / "images" / "test" / "cat").iterdir())[:2]
KEY = "model.visual.{}.weight"
FC2 = "merger.linear_fc2"


@pytest.fixture(scope="module")
def places(tiny_model, tmp_path_factory):
    """A base, the adapter of a "run" and what is made of them."""
    root = tmp_path_factory.mktemp("compare")
    tiny_model.save_pretrained(root / "base")
    tiny.save_processor(root / "base", 256, 1024)
    adapter = tiny.adapter()
    save_peft(adapter, root / "run" / "adapter", base_model_name_or_path=root / "base")
    merge_checkpoint(adapter, root / "base", root / "merged")
    return root


def compare(base, result, *more, images=IMAGES):
    """(exit code, what is printed) of the command."""
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in ("compare", base, result, *images, *more)])
    return ended.value.code


def test_an_edit_that_is_there(places, capsys):
    assert compare(places / "base", places / "merged") == 0
    said = capsys.readouterr().out
    assert "the edit is there" in said
    assert "changed in Linears that an adapter may change: model.visual.deepstack" in said
    assert "OUTSIDE" not in said
    assert compare(places / "base", places / "merged", "--run", places / "run") == 0
    assert compare(places / "base", places / "run" / "adapter", "--run", places / "run") == 0
    assert "0.0% of it" in capsys.readouterr().out


def test_a_small_edit_in_bfloat16_is_the_runs(tiny_model, tmp_path, capsys):
    """Rounding loses a third of it, as of every merge in this data type."""
    deepcopy(tiny_model).bfloat16().save_pretrained(tmp_path / "base")
    tiny.save_processor(tmp_path / "base", 256, 1024)
    adapter = tiny.adapter()
    small = replace(adapter, alpha=adapter.alpha / 20)
    save_peft(small, tmp_path / "run" / "adapter", base_model_name_or_path=tmp_path / "base")
    merge_checkpoint(small, tmp_path / "base", tmp_path / "merged")
    assert compare(tmp_path / "base", tmp_path / "merged", "--run", tmp_path / "run") == 0
    assert compare(tmp_path / "base", tmp_path / "base", "--run", tmp_path / "run") == 1


def test_an_adapter_that_was_not_applied(places, tmp_path, capsys):
    shutil.copytree(places / "base", tmp_path / "served")
    for more in ((), ("--run", places / "run")):
        assert compare(places / "base", tmp_path / "served", *more) == 1
        said = capsys.readouterr().out
        assert "tensors: all are equal" in said
        assert "NO EDIT" in said
    zero = tiny.adapter()
    pairs = {n: replace(pair, b=np.zeros_like(pair.b)) for n, pair in zero.pairs.items()}
    inert = replace(zero, pairs=pairs)
    save_peft(inert, tmp_path / "inert", base_model_name_or_path=places / "base")
    assert compare(places / "base", tmp_path / "inert") == 1


def test_a_merge_of_another_base(places, tiny_model, tmp_path, capsys):
    tensors = load_file(places / "base" / "model.safetensors")
    tensors[KEY.format("blocks.0.mlp.linear_fc1")] += np.float32(0.01)
    tensors["model.language_model.norm.weight"] += np.float32(0.01)
    shutil.copytree(places / "base", tmp_path / "other")
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    merge_checkpoint(tiny.adapter(), tmp_path / "other", tmp_path / "merged")
    # Without the run all that is known is that there is an edit, and more than that.
    assert compare(places / "base", tmp_path / "merged") == 0
    outside = "changed OUTSIDE of them: model.language_model.norm.weight, model.visual.blocks.0"
    assert outside in capsys.readouterr().out
    assert compare(places / "base", tmp_path / "merged", "--run", places / "run") == 1
    assert "not BASE's, and not changed by the run" in capsys.readouterr().out


def test_one_tensor_put_back(places, tmp_path, capsys):
    shutil.copytree(places / "merged", tmp_path / "served")
    base = load_file(places / "base" / "model.safetensors")
    tensors = load_file(tmp_path / "served" / "model.safetensors")
    tensors[KEY.format(FC2)] = base[KEY.format(FC2)]
    save_file(tensors, tmp_path / "served" / "model.safetensors", metadata={"format": "pt"})
    assert compare(places / "base", tmp_path / "served") == 0
    assert compare(places / "base", tmp_path / "served", "--run", places / "run") == 1
    said = capsys.readouterr().out
    assert f"{KEY.format(FC2)}: is BASE's; the run's edit was put back" in said
    assert "NOT THE RUN'S EDIT" in said


def test_an_adapter_of_another_run(places, tmp_path, capsys):
    other = tiny.adapter(seed=1)
    save_peft(other, tmp_path / "other", base_model_name_or_path=places / "base")
    assert compare(places / "base", tmp_path / "other") == 0
    assert compare(places / "base", tmp_path / "other", "--run", places / "run") == 1
    assert "merger: misses the run's edit by" in capsys.readouterr().out


def test_what_cannot_be_compared(places, tmp_path, capsys):
    base, merged = places / "base", places / "merged"
    tiny.model(tiny.config(), seed=1).save_pretrained(tmp_path / "other")
    tiny.save_processor(tmp_path / "other", 256, 1024)
    for command, said in (
        ((base, tmp_path / "gone"), "gone"),
        ((base, merged, "--run", tmp_path), "adapter: no such directory"),
        ((tmp_path / "other", merged, "--run", places / "run"), "has other weights in the adapted"),
        ((base, tmp_path / "x.gguf"), "x.gguf"),
    ):
        assert compare(*command) == 2
        assert said in capsys.readouterr().err
    assert compare(base, merged, images=[tmp_path / "none.png"]) == 2
    assert "none.png: cannot be read" in capsys.readouterr().err


def test_clip(tmp_path, capsys):
    base = CLIP_ASSETS / "checkpoint"
    pair = tiny.random_adapter(
        {"text_projection": porting.load_clip(base).linear("text_projection")[0].shape}
    )
    merge_checkpoint(pair, base, tmp_path / "merged")
    assert compare(base, tmp_path / "merged") == 0
    assert compare(base, base) == 1


def write_gguf(path, checkpoint, kind):
    """The Mergers of a checkpoint as llama.cpp's conversion writes them."""
    import gguf

    tower = porting.load_vision_tower(checkpoint)
    writer = gguf.GGUFWriter(path, "clip")
    for linear, name in gguf_names(tower.config).items():
        weight, bias = tower.linear(linear)
        data = gguf.quantize(np.ascontiguousarray(weight), kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        writer.add_tensor(f"{name}.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf(kind, places, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "base.gguf", places / "base", kind)
    write_gguf(tmp_path / "merged.gguf", places / "merged", kind)
    base, run = places / "base", ("--run", places / "run")
    assert compare(base, tmp_path / "base.gguf") == 1
    assert compare(base, tmp_path / "merged.gguf") == 0
    assert compare(base, tmp_path / "merged.gguf", *run) == 0
    assert compare(base, tmp_path / "base.gguf", *run) == 1
    assert "the edit is there" in capsys.readouterr().out


def test_gguf_without_its_package(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert compare(places / "base", tmp_path / "x.gguf") == 2
    assert "x.gguf: needs the package gguf to be read; pip install gguf" in capsys.readouterr().err
