"""A flipped bit in any file that is read again is noticed, and names the file."""

import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.run_directory import check_finite
from jax_unlearn.runtime.digests import check_digests, read_sealed, sealed, write_digests
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.snapshots import DamagedError, Snapshot
from tests.running import read

ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
SMALL = ("config.json", "digests.json", "history.jsonl", *ADAPTER)


def flipped(data, draw):
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_a_bit_of_the_statistics(copy):
    """Anywhere in the file, and as often in its header, which is small."""
    file, draw = copy / "statistics.safetensors", random.Random(0)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(100):
        part = header if number % 2 else len(whole)
        file.write_bytes(flipped(whole[:part], draw) + whole[part:])
        with pytest.raises(UserError, match=r"^.*/statistics.safetensors: .*run again") as caught:
            read_statistics(copy)
        assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    read_statistics(copy)


@pytest.mark.parametrize("name", [*SMALL, "metrics.json"])
def test_a_bit_of_a_small_file_of_a_run(copy, name):
    file, draw = copy / name, random.Random(0)
    whole = file.read_bytes()
    listed = [one for one in SMALL if one != "digests.json"]
    # A bit in "digest" itself, or in the name of another field, is a change too.
    for _ in range(20):
        file.write_bytes(flipped(whole, draw))
        with pytest.raises(UserError, match=f"^{file}: .*run again") as caught:
            read_sealed(file) if name == "metrics.json" else check_digests(copy, *listed)
        assert "\n" not in str(caught.value)


def test_a_bit_of_a_snapshot():
    arrays, draw = {"x": np.arange(30.0), "empty": np.zeros((0, 3))}, random.Random(0)
    whole = Snapshot(arrays, {"step": 3}).to_bytes()
    for _ in range(200):
        with pytest.raises(DamagedError):
            Snapshot.of_bytes(flipped(whole, draw))
    for length in (0, 7, 31, 32, 40, len(whole) - 1):
        with pytest.raises(DamagedError):
            Snapshot.of_bytes(whole[:length])


def test_a_sealed_object_comes_back(tmp_path):
    content = {"b": [1, 0.1, -1e-300, None, True], "a": {"ü“\n": ""}, "digest of": "x"}
    (tmp_path / "x.json").write_text(sealed(content))
    assert read_sealed(tmp_path / "x.json") == content
    assert [*read_sealed(tmp_path / "x.json")] == [*content]
    for text in ("", "[]", "{}", "3", '{"digest": ""}', '{"a": NaN, "digest": ""}', "[" * 10**5):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x.json: .*run again"):
            read_sealed(tmp_path / "x.json")


def fails(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, command)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_no_command_uses_a_file_that_changed(copy, tmp_path, capsys):
    statistics, weights = copy / "statistics.safetensors", copy / ADAPTER[1]
    commands = {
        "evaluate": ["evaluate", copy],
        "peft": ["export", copy, "--out", tmp_path / "peft"],
        "merged": ["export", copy, "--out", tmp_path / "merged", "--format", "merged"],
        "fit": ["run", "--statistics", copy, "--out", tmp_path / "again"],
    }
    for file, which in {
        statistics: ("evaluate", "fit"),
        weights: ("evaluate", "peft", "merged"),
        copy / "metrics.json": ("evaluate",),
    }.items():
        whole = file.read_bytes()
        file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 4]) + whole[-19:])
        for name in which:
            assert f"{file}: " in fails(capsys, *commands[name])
        file.write_bytes(whole)
    (copy / "digests.json").unlink()
    for command in commands.values():
        assert "digests.json: no such file" in fails(capsys, *command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_checkpoint_that_changed_is_refused(run, folder, tmp_path, capsys):
    """If an adapted Linear did; the weights of others, and other prefixes, do not matter."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    then = read(run / "digests.json")["linears"]
    assert then == porting.linear_digests(folder / "checkpoint", then)
    file = folder / "checkpoint" / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    changes = {"visual.merger.linear_fc2.bias": 1, "visual.merger.norm.bias": 1}
    refused = []
    try:
        for name, change in changes.items():
            key = f"model.{name}"
            save_file(tensors | {key: tensors[key] + np.float32(change)}, file)
            if porting.linear_digests(folder / "checkpoint", then) == then:
                continue
            refused.append(name)
            for command in (["evaluate", copy], ["export", copy, "--out", tmp_path / "out"]):
                line = fails(capsys, *command)
                assert f"checkpoint: merger.linear_fc2 changed since {copy} was made" in line
    finally:
        file.write_bytes(whole)
    assert refused == ["visual.merger.linear_fc2.bias"]
    again = tmp_path / "again"
    main(["run", "--statistics", str(run), "--out", str(again), "--epochs", "1"])
    assert read(again / "digests.json")["linears"] == then


def test_an_adapter_that_is_not_finite_is_not_exported(copy, tmp_path, capsys):
    file = copy / ADAPTER[1]
    tensors = load_file(file)
    name = min(tensors)
    tensors[name][0, 0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    stored = read_sealed(copy / "digests.json")
    write_digests(copy, stored["files"], stored["linears"])
    for form in ("peft", "merged"):
        line = fails(capsys, "export", copy, "--out", tmp_path / "out", "--format", form)
        assert "deepstack_merger_list.0.linear_fc2 has a value that is not finite" in line
    pair = LoraPair(a=np.ones((1, 2)), b=np.ones((2, 1)), bias=np.array([np.inf, 0]))
    with pytest.raises(UserError, match="merger has a value that is not finite"):
        check_finite(LoraAdapter({"merger": pair}, alpha=1.0, rank=1), tmp_path)
