"""A ledger of names through the shipped CLIP's text encoder."""

import json

import numpy as np
from safetensors.numpy import load_file

from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.assets import ASSETS
from tests.running import read, refused, said

CHECKPOINT = ASSETS / "clip" / "checkpoint"
NAMES = ("red circle", "blue circle", "red square", "blue square", "cat", "dog", "coffee")


def begin(directory, *more):
    main(["ledger", "init", str(directory), "--checkpoint", str(CHECKPOINT),
          "--preserve-text", *NAMES, *more])  # fmt: skip
    return directory


def change(run):
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    b, a = (next(x for key, x in tensors.items() if f"lora_{one}" in key) for one in "BA")
    return b @ a


def test_names_in_any_order_one_withdrawn(tmp_path, capsys):
    first, second = begin(tmp_path / "first"), begin(tmp_path / "second")
    config = json.loads((first / "ledger.jsonl").read_text())["what"]["settings"]
    assert (config["target"], config["lambda_preserve"]) == ("blank", 1.0)
    for ledger, concepts in ((first, ("red", "cat")), (second, ("cat", "dog", "red"))):
        ids = {one: said(capsys, "ledger", "add", ledger, "--concept", one).strip()
               for one in concepts}  # fmt: skip
        main(["ledger", "add", str(ledger), "--concept", "pets", "--text", "hamster", "horse"])
    main(["ledger", "undo", str(second), ids["dog"]])
    for ledger in (first, second):
        main(["ledger", "solve", str(ledger), "--out", str(tmp_path / f"{ledger.name}-run")])
    runs = [tmp_path / f"{name}-run" for name in ("first", "second")]
    files = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    assert np.linalg.norm(change(runs[0])) > 0.01
    metrics = read(runs[0] / "metrics.json")
    assert metrics["ledger"]["names"]
    named = {one["concept"]: one for one in metrics["ledger"]["requests"]}
    assert {one: row["classes"] for one, row in named.items()} == {
        "red": ["red circle", "red square"], "cat": ["cat"], "pets": ["hamster", "horse"],
    }  # fmt: skip
    for row in named.values():
        assert (row["named_before"], row["named_after"]) == (1.0, 0.0)
    assert metrics["preserve"]["accuracy_after"] == 1.0
    settings = read(runs[0] / "config.json")
    assert settings["forget_text"] == ["cat", "hamster", "horse", "red circle", "red square"]
    assert settings["preserve_text"] == ["blue circle", "blue square", "coffee", "dog"]
    assert "nearest original name" in (runs[0] / "report.html").read_text()
    listed = said(capsys, "ledger", "list", first)
    assert "prompts" in listed
    # The run is whole without the ledger, and is exported as any other.
    main(["evaluate", str(runs[0])])
    assert read(runs[0] / "metrics.json")["ledger"] == metrics["ledger"]
    again = tmp_path / "again"
    main(["run", "--statistics", str(runs[0]), "--out", str(again)])
    assert (again / "adapter" / "adapter_model.safetensors").read_bytes() == files[0]
    assert read(again / "metrics.json")["ledger"] == metrics["ledger"]
    main(["export", str(runs[0]), "--out", str(tmp_path / "merged")])
    before, after = (
        load_file(place / "model.safetensors")["text_projection.weight"].astype(np.float32)
        for place in (CHECKPOINT, tmp_path / "merged")
    )
    # To the rounding of float16, in which both are stored.
    np.testing.assert_allclose(after - before, change(runs[0]), atol=3e-4)
    assert np.abs(after - before).max() > 0.05
    line = refused(capsys, "ledger", "add", first, "--concept", "x", "--text", "COFFEE")
    assert "--text COFFEE: is among the names to preserve, as coffee" in line
    images = ASSETS / "images" / "test"
    assert "is of names" in refused(
        capsys, "ledger", "add", first, "--concept", "x", "--images", images
    )
    assert "give --text" in refused(capsys, "ledger", "add", first, "--concept", "zebra")


def test_what_a_ledger_of_names_does_not_take(tmp_path, capsys):
    start = ["ledger", "init", tmp_path / "new", "--checkpoint"]
    names = ["--preserve-text", *NAMES]
    images = ["--preserve", ASSETS / "images" / "test"]
    for words, why in {
        (CHECKPOINT, *names, *images): "and not both",
        (CHECKPOINT,): "give a folder of images",
        (CHECKPOINT, *images): "takes names alone",
        (CHECKPOINT, *names, "--no-image-means"): "--no-image-means: has no effect",
        (CHECKPOINT, *names, "--target", "stand_in"): "needs many images of a class",
        (CHECKPOINT, *names, "cat "): "is there twice",
        (CHECKPOINT, *names, "--template", "a photo"): "needs one {}",
        (ASSETS / "checkpoint", *names): "is no CLIP",
        (ASSETS / "checkpoint", *images, "--template", "a {}"): "--template: has no effect",
    }.items():
        assert why in refused(capsys, *start, *words)
    assert not (tmp_path / "new").exists()
