"""Checkpoints on the hub, with the real client against a local server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import INDEX, SINGLE, download, hub_id, local_checkpoint, pinned
from porting import CheckpointError
from porting.qwen3_vision import load_vision_tower
from tests import tiny
from tests.hub_server import COMMIT, serving
from tests.running import arguments, read

TOWER, TEXT, PROCESSOR = "model-1.safetensors", "model-2.safetensors", "preprocessor_config.json"


@pytest.fixture(scope="module")
def files(tiny_dir, tmp_path_factory):
    """The tiny model as a repository: vision tensors in one shard, the others in another."""
    out = tmp_path_factory.mktemp("repository")
    tensors = load_file(tiny_dir / SINGLE)
    place = {key: TOWER if ".visual." in key else TEXT for key in tensors}
    for name in (TOWER, TEXT):
        save_file({key: t for key, t in tensors.items() if place[key] == name}, out / name)
    (out / INDEX).write_text(json.dumps({"weight_map": place}))
    (out / "config.json").write_bytes((tiny_dir / "config.json").read_bytes())
    tiny.save_processor(out, 32 * 32, 256 * 256)
    (out / "onnx").mkdir()
    for name in ("onnx/config.json", "pytorch_model.bin", "training_args.bin", "README.md"):
        (out / name).write_text("not needed")
    return out


def forget():
    """As in a new process."""
    local_checkpoint.cache_clear()
    download.cache_clear()


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    with serving(files) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        forget()
        yield server
    forget()


def test_a_run_downloads_the_shards_of_the_tower_alone(hub, tiny_tower):
    tower = load_vision_tower("tiny/model")
    assert sorted(hub.downloads) == ["README.md", "config.json", TOWER, INDEX, PROCESSOR]
    for ours, theirs in zip(
        (tower.merger.linear_fc1, tower.merger.linear_fc2),
        (tiny_tower.merger.linear_fc1, tiny_tower.merger.linear_fc2),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
    whole = local_checkpoint("tiny/model", "all")
    assert sorted(path.name for path in whole.iterdir()) == [
        "README.md",
        "config.json",
        TOWER,
        TEXT,
        INDEX,
        PROCESSOR,
    ]


def test_a_revision_is_pinned_to_its_commit(hub):
    assert pinned(Path("tiny/model@v1")) == Path(f"tiny/model@{COMMIT}")
    assert local_checkpoint(f"tiny/model@{COMMIT}", "none").name == COMMIT


def test_a_run_records_the_commit(hub, folder, tmp_path):
    main(arguments(folder, tmp_path / "run", checkpoint="tiny/model@v1", epochs=2))
    assert read(tmp_path / "run" / "config.json")["checkpoint"] == f"tiny/model@{COMMIT}"
    assert TEXT not in hub.downloads
    adapter = read(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("tiny/model", COMMIT)
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    assert TEXT in hub.downloads
    assert (tmp_path / "merged" / TEXT).is_file()


def test_what_is_in_the_cache_is_read_without_the_hub(hub, monkeypatch):
    first = local_checkpoint("tiny/model")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert local_checkpoint("tiny/model") == first
    with pytest.raises(UserError, match="the hub cannot be reached, and its cache"):
        local_checkpoint("tiny/other")
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/none", "tiny/none: no such directory, and no such repository on the hub"),
        ("tiny/gated", "tiny/gated: access is restricted"),
        ("tiny/model@v9", "tiny/model@v9: the repository has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, name, message):
    with pytest.raises(UserError) as caught:
        load_vision_tower(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_a_fault_where_its_tensors_are_read(files, tiny_dir, tmp_path):
    for name in (INDEX, "config.json", TEXT):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    with pytest.raises(CheckpointError, match=rf"{TOWER} is missing; {INDEX} names it"):
        load_vision_tower(tmp_path)


def test_a_directory_goes_before_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "model").mkdir(parents=True)
    assert hub_id("tiny/model") is None
    for local in ("/tiny/model", "./tiny/model", "tiny", "a/b/c", "~/tiny", "../model"):
        assert hub_id(local) is None
    assert hub_id("Qwen/Qwen3-VL-2B-Instruct@refs/pr/3")["revision"] == "refs/pr/3"


# A command twice, in one process, for its start takes longer.
WITHOUT_AND_WITH_TOKEN = """
import os, sys
from jax_unlearn.runs.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(f"without a token: {ended.code}", flush=True)
os.environ["HF_TOKEN"] = "hf_secret"
main(sys.argv[1:])
"""


def test_endpoint_and_token_are_those_of_the_environment(files, tmp_path):
    with serving(files, token="hf_secret") as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", WITHOUT_AND_WITH_TOKEN, "inspect", "tiny/model"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, found = done.stdout.split("without a token: 2\n")
    assert not refused
    assert "no such repository on the hub, or it is private" in done.stderr
    assert "family: qwen3_vl" in found
    assert TEXT not in server.downloads
