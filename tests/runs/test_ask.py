"""The model is asked: by `ask` about any image, by `evaluate --vlm` about the held-out ones."""

import json
import shutil

import pytest

from jax_unlearn.evaluate import reidentification
from jax_unlearn.runs.ask import Reply, as_table, unfinished
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.digests import of_file
from tests.running import read

TRIANGLE = ASSETS / "images" / "test" / "red triangle" / "000.png"
CAT = ASSETS / "images" / "test" / "cat" / "000.jpg"


def error_of(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_several_images_and_questions_are_asked_before_and_after(asked, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    questions = ["what is this?", "what shape is in the image?"]
    words = ["ask", asked, TRIANGLE, CAT, "--question", *questions]
    capsys.readouterr()
    main([*map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = [(one["image"], one["question"]) for one in found]
    assert rows == [(str(image), q) for q in questions for image in (TRIANGLE, CAT)]
    before, after = ([one[when] for one in found] for when in ("before", "after"))
    assert before[0] == "red triangle"
    assert "triangle" not in after[0]
    assert before[1] == after[1] == "cat"
    assert before[2] == "triangle"
    main([*map(str, words)])
    table = capsys.readouterr().out
    assert all(answer in table for answer in (before[0], after[0], questions[1]))


def test_reasoning_is_left_out_of_the_table_and_its_lack_of_an_end_said():
    done = Reply("a.png", "what?", "<think>dog?</think> a cat", "<think>dog or")
    table = as_table([done])
    assert [*table.columns[2].cells] == ["a cat"]
    assert [*table.columns[3].cells] == ["(its reasoning has no end)"]
    assert "1 of 2 replies" in unfinished([done])
    assert unfinished([Reply("a.png", "what?", "a cat", "a dog")]) is None


def test_bad_input_of_ask_is_one_line(asked, tmp_path, capsys):
    assert "no image is given" in error_of(["ask", asked], capsys)
    missing = tmp_path / "no.png"
    assert f"{missing}: cannot be read" in error_of(["ask", asked, missing], capsys)
    assert "config.json: not the config" in error_of(["ask", tmp_path, TRIANGLE], capsys)
    assert "--question: is empty" in error_of(["ask", asked, TRIANGLE, "--question", ""], capsys)
    words = ["ask", asked, TRIANGLE, "--max-new-tokens", "0"]
    assert "--max-new-tokens 0: must be at least 1" in error_of(words, capsys)
    copy = shutil.copytree(asked, tmp_path / "run")
    with (copy / "adapter" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert "has changed since it was written" in error_of(["ask", copy, TRIANGLE], capsys)


def test_every_answer_is_kept_and_few_images_are_a_warning(asked, tmp_path, capsys):
    run = shutil.copytree(asked, tmp_path / "run")
    main(["evaluate", str(run), "--vlm", "--max-new-tokens", "8"])
    said = capsys.readouterr()
    vlm = read(run / "metrics.json")["vlm"]
    assert vlm["asked_with"] == {
        "device": vlm["asked_with"]["device"],
        "dtype": "float32",
        "max_pixels": 65536,
        "max_new_tokens": 8,
        "batch_tokens": 16384,
    }
    assert vlm["answers.jsonl"] == of_file(run / "answers.jsonl")
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    questions = ["what is this?", "is there a red triangle?", "is there a red circle?"]
    assert [*dict.fromkeys(row["question"] for row in rows)] == questions
    named = [row for row in rows if row["question"] == questions[0]]
    assert len(named) == 15
    assert sum(row["side"] == "forget" for row in named) == 3
    forget = [row for row in named if row["side"] == "forget"]
    assert {row["right"] for row in forget} == {row["class"] for row in forget} == {"red triangle"}
    shares = [
        sum(row[when]["matched"] == "red triangle" for row in forget) / 3
        for when in ("before", "after")
    ]
    assert shares == [vlm[when]["named"][0]["share"] for when in ("before", "after")]
    assert shares[0] == 1.0
    assert "only 3 held-out images to forget" in said.err
    # A yes/no question that this model cannot answer says nothing.
    if vlm["before"]["confirmed"][0]["share"] <= 0.5:
        assert "says nothing" in said.out
    main(["evaluate", str(run)])
    assert read(run / "metrics.json")["vlm"] == vlm


def test_images_without_classes_are_a_warning_and_no_figure(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reidentification, "DRAWS", 1)
    for side in ("forget", "preserve"):
        (tmp_path / side).mkdir()
        for file in (asked.parent / side).glob("*/00*.*"):
            shutil.copy(file, tmp_path / side / f"{file.parent.name} {file.name}")
    folders = [w for s in ("forget", "preserve") for w in (f"--{s}", str(tmp_path / s))]
    run = str(tmp_path / "run")
    main(["run", "--checkpoint", str(ASSETS / "checkpoint"), *folders, "--out", run])
    main(["evaluate", run, "--vlm"])
    vlm = read(tmp_path / "run" / "metrics.json")["vlm"]
    assert vlm["unnamed"] == ["forget", "preserve"]
    assert vlm["before"]["named"] == []
    assert vlm["after"]["others"] is None
    said = capsys.readouterr()
    assert "the images to forget are in no sub-folder" in said.err
    assert "--questions with answers for the class “forget”" in said.err
    assert "the model names it" not in said.out


def test_a_published_benchmark_is_asked_in_place_of_the_images(asked, tmp_path, capsys):
    run = shutil.copytree(asked, tmp_path / "run")
    qa = {"question": "what is this?", "answer": "A cat.", "keywords": ["cat"], "label": "x"}
    people = [{"unique_id": "a", "image_path": str(CAT), "qa_list": [qa]}]
    file = tmp_path / "full.json"
    file.write_text(json.dumps(people))
    main(["evaluate", str(run), "--vlm", "--questions", str(file)])
    metrics, said = read(run / "metrics.json"), capsys.readouterr()
    found = metrics["benchmark"]
    assert "vlm" not in metrics
    assert found["splits"] == {
        "full": {
            "question": {
                "rougeL_recall": {"questions": 1, "before": 0.5, "after": 0.5},
                "exact_match": {"questions": 1, "before": 1.0, "after": 1.0},
            }
        }
    }
    assert found["benchmark-answers.jsonl"] == of_file(run / "benchmark-answers.jsonl")
    assert "the layout of FIUBench; questions about images: 1" in said.err
    assert "not used: 1 label" in said.err
    assert "1.000" in said.out
