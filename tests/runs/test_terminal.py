"""What a command says when it ends: both probes by their names, and checks that mean nothing."""

import copy
import html
import io
import json
import re
import shutil
import sys
import warnings

import pytest

from jax_unlearn.runs import command_line
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.report.page import report
from jax_unlearn.runs.run_directory import checks_that_mean_nothing
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runs.terminal import finish, print_table, summary
from tests.running import arguments, read

NAMED = {"question": "what is this?", "chance": 0.2, "instead": {}}


def vlm(before, after):
    """Answers of the model, of which the tests change the share that name the concept."""
    rest = dict.fromkeys(("selectivity", "others", "neighbours", "others_rest", "yes_no"), 0.875)
    shares = {"before": before, "after": after}
    said = {"after": {"blue circle": 0.75}}
    return {
        when: rest
        | {"confirmed": [], "named": [NAMED | {"share": share, "instead": said.get(when, {})}]}
        for when, share in shares.items()
    }


@pytest.fixture
def metrics(run):
    """Of a whole run, with figures that are known."""
    found = copy.deepcopy(read(run / "metrics.json"))
    found["forget"] = {"accuracy_before": 0.953, "accuracy_after": 0.061, "chance": 0.333}
    found["refitted"] = {"accuracy_before": 0.971, "accuracy_after": 0.934}
    found["preserve"] = {"accuracy_before": 0.912, "accuracy_after": 0.907}
    found["chance"] = {"forget": 0.333, "preserve": 0.111, "neighbours": 0.111}
    found |= {"reidentification": [], "concepts": 0}
    # So many that a share says something.
    found["samples"]["forget_held_out"] = 40
    return found | {"warnings": []}


def printed(metrics, run, capsys):
    finish(metrics, run)
    found = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in found.out.splitlines()]
    return found, {row[0]: row[1:] for row in rows if row}


def test_a_check_above_chance_means_something(metrics):
    assert checks_that_mean_nothing(metrics) == []
    ledger = {"combine": "sum", "directory": "LEDGER", "requests": [{}, {}], "image_means": True}
    kept = {"accuracy_before": 0.95, "accuracy_after": 0.92}
    (line,) = checks_that_mean_nothing(metrics | {"ledger": ledger, "preserve": kept})
    assert "92.0% is read right, 95.0% before; try `ledger solve LEDGER --combine joint`" in line
    for change in ({"combine": "joint"}, {"requests": [{}]}):
        more = {"ledger": ledger | change, "preserve": kept}
        assert checks_that_mean_nothing(metrics | more) == []
    assert checks_that_mean_nothing(metrics | {"ledger": ledger}) == []
    (line,) = checks_that_mean_nothing(metrics | {"concepts": 21})
    assert "for the first 0 of 21 concepts" in line
    assert checks_that_mean_nothing(metrics | {"vlm": vlm(0.21, 0.0)}) == []


@pytest.mark.parametrize("before", [0.333, 0.25, 0.0])
def test_a_check_at_chance_or_below_means_nothing(metrics, before):
    metrics["forget"]["accuracy_before"] = before
    (line,) = checks_that_mean_nothing(metrics)
    assert f"a linear probe names the concept in {before:.1%} of the images" in line
    assert "a guess in 33.3%" in line
    assert line.endswith("this check says nothing about forgetting; choose another --concept")
    (line,) = checks_that_mean_nothing(metrics | {"zero_shot": {}})
    assert "zero-shot classification names the concept" in line


def test_so_it_is_with_questions_that_the_model_never_answered(metrics):
    (line,) = checks_that_mean_nothing(metrics | {"vlm": vlm(0.2, 0.0)})
    assert "the model's answer to “what is this?” names the concept in 20.0%" in line
    assert line.endswith("choose another --questions")


def test_the_run_says_so_and_keeps_it(run):
    metrics = read(run / "metrics.json")
    assert metrics["warnings"] == checks_that_mean_nothing(metrics)


def test_a_warning_is_printed_apart_from_the_table(metrics, run, capsys):
    found, _ = printed(metrics | {"warnings": ["it means nothing"]}, run, capsys)
    assert found.err.splitlines() == ["warning: it means nothing"]
    assert printed(metrics, run, capsys)[0].err == ""


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_command_prints_its_warnings_whatever_the_program_does_with_them(
    action, monkeypatch, capsys
):
    def dispatch(*_):
        warnings.warn("so it is", stacklevel=1)
        warnings.warn("overflow", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(command_line, "dispatch", dispatch)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        main(["inspect", "checkpoint"])
        assert warnings.filters[0][0] == action
    assert capsys.readouterr().err == "warning: so it is\nwarning: overflow\n"


def test_the_table_has_both_probes_by_their_names(metrics, run, capsys):
    found, rows = printed(metrics, run, capsys)
    assert rows["a probe fitted before the edit names it"] == ["0.953", "0.061", "0.333"]
    assert rows["a probe fitted after the edit names it"] == ["0.971", "0.934", "0.333"]
    assert rows["preserve, right by the first probe"] == ["0.912", "0.907", "0.111"]
    lines = found.out.splitlines()
    made = f"{run}: a change of rank 2 of {', '.join(metrics['adapter']['targets'])}"
    assert lines[lines.index("next:") - 1] == made
    assert [line.split("  ")[1] for line in lines[lines.index("next:") + 1 :]] == [
        f"open {run / 'report.html'}",
        f"jax-unlearn evaluate {run} --vlm",
        f"jax-unlearn export {run} --out DIRECTORY",
    ]


def test_the_table_has_what_the_model_says_instead(metrics, run, capsys):
    found, rows = printed(metrics | {"vlm": vlm(1.0, 0.125)}, run, capsys)
    assert rows["the model names it: what is this?"] == ["1.000", "0.125", "0.200"]
    assert rows["and says instead"] == ["", "blue circle 0.75", ""]
    assert "--vlm" not in found.out


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_a_terminal_cannot_show_is_escaped(encoding, metrics, folder, tmp_path, monkeypatch):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, name, streams[name])

    def terminal(name):
        return streams[name].buffer.getvalue().decode(encoding)

    there = tmp_path / "日本"
    with pytest.raises(SystemExit):
        main(arguments(folder, there / "x", forget=there / "a"))
    (line,) = terminal("stderr").splitlines()
    assert line == f"jax-unlearn: {tmp_path}/\\u65e5\\u672c/a: no such folder of images"
    share = {"before": 1.0, "after": None}
    metrics["zero_shot"] = {
        "on": "images", "classes": {"日本": share}, "chance": 0.1, "before": {}, "after": {},
        "other_data": {"日本": share},
    }  # fmt: skip
    metrics["zero_shot"] |= {when: {"others": 1.0, "neighbours": None} for when in share}
    metrics["samples"]["skipped"] = [f"{there}/b.png: cannot be read"]
    finish(metrics, there)
    skipped = terminal("stderr").splitlines()[1]
    assert skipped == f"skipped {tmp_path}/\\u65e5\\u672c/b.png: cannot be read"
    assert f"open {tmp_path}/\\u65e5\\u672c/report.html" in terminal("stdout")
    assert "zero-shot, \\u65e5\\u672c (to forget)" in terminal("stdout")


def test_names_like_markup_are_shown_as_they_are(metrics, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    name = '[bold]cat[/] :dog: [/red] <b>"it\'s"</b>'
    metrics["vlm"] = vlm(1.0, 0.5)
    metrics["vlm"]["before"]["named"][0]["question"] = name
    print_table(summary(metrics))
    found = capsys.readouterr().out
    assert f"the model names it: {name}" in " ".join(found.replace("│", " ").split())


def test_control_characters_are_escaped(metrics, capsys, monkeypatch, folder, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    name = "\x1b[31mcat\x07"
    metrics["vlm"] = vlm(1.0, 0.5)
    metrics["vlm"]["before"]["named"][0]["question"] = name
    metrics["vlm"]["after"]["named"][0]["instead"] = {name: 0.75}
    metrics["samples"] |= {"skipped": [name], "left_out": [name]}
    metrics["warnings"] = [name]
    finish(metrics, tmp_path / name)
    found = capsys.readouterr()
    assert "\x1b" not in found.out + found.err
    for text in ("the model names it: ", "skipped ", "warning: ", f"open {tmp_path}/"):
        assert f"{text}\\x1b[31mcat\\x07" in found.out + found.err
    checkpoint = shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": name}))
    main(["inspect", str(checkpoint)])
    assert "\\x1b[31mcat" in (said := capsys.readouterr().out)
    assert "\x1b" not in said


def test_names_like_markup_are_text_in_the_report(metrics, run):
    name = '[bold]cat[/] <script>alert(1)</script> & "it\'s" 日本\\x0a'
    metrics["samples"] |= {"skipped": [name], "left_out": [name]}
    metrics["vlm"] = vlm(1.0, 0.5)
    for when in ("before", "after"):
        metrics["vlm"][when] |= {"confirmed": [], "false_yes": {}}
        metrics["vlm"][when]["named"][0]["question"] = name
    config = read_config(run).replace(concept=name)
    page = report(run, config, metrics, [])
    assert "<script" not in page
    assert len(re.findall(re.escape(name), html.unescape(page))) >= 6


@pytest.mark.parametrize(
    ("images", "score", "fresh", "optimizer", "suggested"),
    [
        (250, 0.95, True, "closed_form", True),
        (249, 0.95, True, "closed_form", False),
        (250, 0.7, True, "closed_form", False),
        (250, 0.95, False, "closed_form", False),
        (250, 0.95, True, "stand_in", False),
    ],
)
def test_with_enough_images_another_target_is_suggested(
    metrics, run, capsys, images, score, fresh, optimizer, suggested
):
    curve = {"10": {"before": [1.0, 1.0, 1.0], "after": [score, 0.6, 1.0]}}
    metrics["reidentification"] = [
        {"concept": "red triangle", "counterpart": "blue circle", "fresh": fresh,
         "few_shot": {"mean": curve}}
    ]  # fmt: skip
    metrics["samples"] = metrics["samples"] | {"forget": images}
    metrics["optimizer"] = optimizer
    found, rows = printed(metrics, run, capsys)
    assert ("--target stand_in" in found.out) == suggested
    (shown,) = (row for what, row in rows.items() if what.startswith("10 labelled images"))
    assert shown[:2] == ["1.000", f"{score:.3f}"]
