"""The whole job on the shipped model: the Hugging Face model forgets, and only that."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jax_unlearn.runtime.assets import ASSETS

ROOT = Path(__file__).parents[2]
OPEN = 4
# Of a class, of 25. The model takes most of the time, twice for each image and question; readers
# are fitted on held-out images where there are at least as many.
HELD_OUT = 10
# A command whose demo is over another copy of the assets.
WITH_ASSETS = """
import sys
from pathlib import Path
from jax_unlearn.runs import cli, demo
demo.ASSETS = Path(sys.argv[1])
cli.main(sys.argv[2:])
"""


def fewer_held_out(assets):
    """The package's assets, with fewer of the images that are held out."""
    (assets / "images" / "test").mkdir(parents=True)
    for name in ("checkpoint", "questions.json", "images/train"):
        (assets / name).symlink_to(ASSETS / name)
    for shipped in (ASSETS / "images" / "test").iterdir():
        copied = assets / "images" / "test" / shipped.name
        copied.mkdir()
        for file in sorted(shipped.iterdir())[:HELD_OUT]:
            shutil.copy(file, copied)
    return assets


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """metrics.json of the demo, judged by the open questions."""
    folder = tmp_path_factory.mktemp("demo")
    assets = fewer_held_out(folder / "assets")
    questions = json.loads((ASSETS / "questions.json").read_text())[:OPEN]
    (folder / "open.json").write_text(json.dumps(questions))
    run = str(folder / "run")
    demo = ["demo", "--concept", "red triangle", "--out", run]
    # With the compiler as users have it, as the quickstart: what one of them compiles the other
    # loads, and the images take longer than compiling.
    for words in demo, ["evaluate", run, "--vlm", "--questions", str(folder / "open.json")]:
        command = [sys.executable, "-c", WITH_ASSETS, str(assets), *words]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, check=True)
    return json.loads((folder / "run" / "metrics.json").read_text()), folder / "run"


def test_the_model_no_longer_names_the_concept(scores):
    vlm = scores[0]["vlm"]
    assert [n["question"] for n in vlm["after"]["named"]] == [
        "what is this?",
        "what shape is in the image? + what color is the shape?",
    ]
    for before, after in zip(vlm["before"]["named"], vlm["after"]["named"], strict=True):
        assert before["share"] > 0.9
        assert after["share"] <= after["chance"]


def test_the_model_keeps_everything_else(scores):
    before, after = scores[0]["vlm"]["before"], scores[0]["vlm"]["after"]
    assert after["selectivity"] >= 0.99
    assert after["others"] >= before["others"] - 0.005
    assert after["neighbours"] >= before["neighbours"] - 0.02


def test_a_probe_fitted_before_no_longer_reads_it(scores):
    metrics = scores[0]
    assert metrics["forget"]["accuracy_before"] > 0.9
    assert metrics["forget"]["accuracy_after"] < 0.2
    assert metrics["preserve"]["accuracy_after"] > metrics["preserve"]["accuracy_before"] - 0.02


def test_the_report_shows_the_answers(scores):
    page = (scores[1] / "report.html").read_text()
    assert "What the model says about held-out images" in page
    # Two sentences first, with the model's own answers.
    assert "the model names “red triangle” in 0.0 % of its held-out images" in page
    # Beside a picture, what the model said about it before and now.
    assert "red triangle → <b>" in page
    assert "red triangle → <b>red triangle" not in page
    kept = re.findall(r">([a-z ]+) → <b>\1</b>", page)
    assert len(kept) > 10
    assert "what shape is in the image? + what color is the shape?" in page
