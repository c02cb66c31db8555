"""What an export writes and says: cards, bias, uploads."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import porting
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.clients import CLIENTS
from jax_unlearn.runtime.assets import ASSETS
from porting.peft import read_facts
from tests import tiny
from tests.running import CLASSES, LEACE, arguments

BASE_CARD = """---
license: other
license_name: ours
tags: [vision]
base_model: org/older
model-index: []
---

# The base
"""


@pytest.fixture(scope="module")
def folder(tiny_dir, tmp_path_factory):
    """A tiny checkpoint with a card, and few images."""
    root = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_dir, root / "checkpoint")
    tiny.save_processor(root / "checkpoint", 256, 1024)
    (root / "checkpoint" / "README.md").write_text(BASE_CARD)
    for side, classes in CLASSES.items():
        for name in classes:
            (root / side / name).mkdir(parents=True)
            for file in sorted((ASSETS / "images" / "train" / name).iterdir())[:6]:
                shutil.copy(file, root / side / name / file.name)
    return root


@pytest.fixture(scope="module")
def run(folder):
    """By LEACE, which has a bias."""
    main(arguments(folder, folder / "run", base_model="org/base", **LEACE))
    return folder / "run"


def metadata(path):
    _, block, text = path.read_text().split("---\n", 2)
    return yaml.safe_load(block), text


def test_the_card_of_an_adapter(run, folder):
    found, text = metadata(run / "adapter" / "README.md")
    assert (found["base_model"], found["base_model_relation"]) == ("org/base", "adapter")
    assert (found["license"], found["license_name"]) == ("other", "ours")
    assert (found["library_name"], "unlearning" in found["tags"]) == ("peft", True)
    metrics = json.loads((run / "metrics.json").read_text())
    refitted = metrics["refitted"]
    row = f"{refitted['accuracy_before']:.3f} | {refitted['accuracy_after']:.3f}"
    assert f"| a probe fitted after the edit names it | {row} |" in text
    lost = "`add_weighted_adapter` drops the bias of this adapter"
    for part in ("Forgets “red triangle”", "Hidden, not erased", "-tower-connector-lora", lost):
        assert part in text
    assert str(folder) not in text
    assert (
        metrics["adapter"]["bytes"]
        < (run / "adapter" / "adapter_model.safetensors").stat().st_size + 2000
    )


def test_the_card_of_a_merged_checkpoint(run, folder, capsys):
    out, undo = folder / "merged", folder / "undo"
    main(["export", str(run), "--out", str(out), "--undo", str(undo)])
    said = capsys.readouterr()
    assert said.out.split() == [str(out)]
    assert "works in: transformers" in said.err
    found, text = metadata(out / "README.md")
    assert (found["license"], found["base_model"]) == ("other", "org/base")
    assert {"vision", "unlearning"} <= set(found["tags"])
    assert "model-index" not in found
    assert text.index("Forgets “red triangle”") < text.index("# The base")
    main(["unmerge", str(out), "--undo", str(undo), "--out", str(folder / "back")])
    assert (folder / "back" / "README.md").read_text() == BASE_CARD


def test_a_card_whose_licence_cannot_be_read(run, folder, tmp_path, capsys):
    shutil.copytree(folder / "checkpoint", tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: [\n---\n")
    moved = ["--checkpoint", str(tmp_path / "base"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["export", str(run), *moved])
    assert "README.md: its metadata, which hold the licence, cannot be read" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_where_an_adapter_is_inert_is_said(run, folder, capsys):
    main(["export", str(run), "--out", str(folder / "peft"), "--format", "peft"])
    (inert,) = (line for line in capsys.readouterr().err.splitlines() if "INERT" in line)
    for tool in ("vLLM (unless --enable-tower-connector-lora", "llama.cpp", "sglang-jax"):
        assert tool in inert
    assert {one.evidence for one in CLIENTS} == {"test", "tried", "read"}


def test_an_adapter_without_its_bias(run, folder, tmp_path, capsys):
    out = tmp_path / "plain"
    main(["export", str(run), "--out", str(out), "--format", "peft", "--no-bias"])
    said = capsys.readouterr().err
    full, plain = porting.load_peft(run / "adapter"), porting.load_peft(out)
    size = np.linalg.norm(full.scale * np.asarray(full.pairs["merger.linear_fc2"].bias))
    assert f"dropped from merger.linear_fc2: a bias of norm {size:.3g}" in said
    assert "merger: images to keep move by" in said
    assert all(pair.bias is None for pair in plain.pairs.values())
    for name, pair in full.pairs.items():
        np.testing.assert_array_equal(plain.pairs[name].b, pair.b)
    assert "lora_bias" not in json.loads((out / "adapter_config.json").read_text())
    assert read_facts(out) == read_facts(run / "adapter")
    assert len(load_file(out / "adapter_model.safetensors")) == 2 * len(full.pairs)
    card = (out / "README.md").read_text()
    assert "The bias of this adapter was dropped" in card
    assert "add_weighted_adapter" not in card
    main(arguments(folder, tmp_path / "run", epochs=1))
    capsys.readouterr()
    again = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "x"), "--format", "peft"]
    with pytest.raises(SystemExit):
        main([*again, "--no-bias"])
    assert "--no-bias: has no effect here: the adapter has no bias" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as the real client needs to upload small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        name = f"http://localhost:{self.server.server_port}/me/it"
        if self.path == "/api/repos/create":
            self.answer({"url": name, "id": "x"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": file["path"]} | plain for file in files]})
        elif "/commit/" in self.path:
            self.answer({"commitUrl": f"{name}/commit/0", "commitOid": "0"})
        else:
            self.answer({"status": "ok"})

    def do_GET(self):
        self.answer({"id": "me/it", "sha": "0", "siblings": []})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("localhost", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_an_export_is_uploaded(run, tmp_path, hub, capsys):
    out = tmp_path / "peft"
    push = ["--format", "peft", "--push-to-hub", "me/it"]
    main(["export", str(run), "--out", str(out), *push])
    assert "uploaded to http://localhost" in capsys.readouterr().err
    create, *_, (path, token, commit) = hub.seen
    assert json.loads(create[2])["visibility"] == "private"
    assert (path, token) == ("/api/models/me/it/commit/main", "Bearer hf_test")
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_an_upload_that_cannot_be(run, tmp_path, hub, monkeypatch, capsys):
    def fails(repository):
        command = ["export", str(run), "--out", str(tmp_path / "out"), "--format", "peft"]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--push-to-hub", repository])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "--push-to-hub a/b/c: " in fails("a/b/c")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "--push-to-hub me/it: there is no token of the Hugging Face Hub; run" in fails("me/it")
    assert not (tmp_path / "out").exists()
    assert hub.seen == []
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://localhost:1")
    assert "me/it: was not uploaded" in fails("me/it")
    assert (tmp_path / "out" / "adapter_config.json").is_file()
