"""The whole job on the shipped model: the Hugging Face model forgets, and only that."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_unlearn.runtime.assets import ASSETS

ROOT = Path(__file__).parents[2]
OPEN = 4


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """metrics.json of the demo, judged by the open questions."""
    folder = tmp_path_factory.mktemp("demo")
    questions = json.loads((ASSETS / "questions.json").read_text())[:OPEN]
    (folder / "open.json").write_text(json.dumps(questions))
    run = str(folder / "run")
    demo = ["demo", "--concept", "red triangle", "--out", run]
    # With the compiler as users have it, as the quickstart: what one of them compiles the other
    # loads, and a thousand images take longer than compiling.
    for words in demo, ["evaluate", run, "--vlm", "--questions", str(folder / "open.json")]:
        command = [sys.executable, "-m", "jax_unlearn", *words]
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
