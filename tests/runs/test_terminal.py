"""What a command says when it ends: both probes by their names, and checks that mean nothing."""

import copy

import pytest

from jax_unlearn.runs.run_directory import checks_that_mean_nothing
from jax_unlearn.runs.terminal import finish
from tests.running import read

NAMED = {"question": "what is this?", "chance": 0.2, "instead": {}}


def vlm(before, after):
    """Answers of the model, of which the tests change the share that name the concept."""
    rest = dict.fromkeys(("selectivity", "others", "neighbours", "others_rest", "yes_no"), 0.875)
    shares = {"before": before, "after": after}
    said = {"after": {"blue circle": 0.75}}
    return {
        when: rest | {"named": [NAMED | {"share": share, "instead": said.get(when, {})}]}
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
    return found | {"warnings": []}


def printed(metrics, run, capsys):
    finish(metrics, run)
    found = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in found.out.splitlines()]
    return found, {row[0]: row[1:] for row in rows if row}


def test_a_check_above_chance_means_something(metrics):
    assert checks_that_mean_nothing(metrics) == []
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


def test_the_table_has_both_probes_by_their_names(metrics, run, capsys):
    found, rows = printed(metrics, run, capsys)
    assert rows["a probe fitted before the edit names it"] == ["0.953", "0.061", "0.333"]
    assert rows["a probe fitted after the edit names it"] == ["0.971", "0.934", "0.333"]
    assert rows["preserve, right by the first probe"] == ["0.912", "0.907", "0.111"]
    assert f"The model's own answers were not asked for: jax-unlearn evaluate {run} --vlm" in (
        " ".join(found.out.split())
    )
    assert found.out.splitlines()[-1] == str(run / "report.html")


def test_the_table_has_what_the_model_says_instead(metrics, run, capsys):
    found, rows = printed(metrics | {"vlm": vlm(1.0, 0.125)}, run, capsys)
    assert rows["the model names it: what is this?"] == ["1.000", "0.125", "0.200"]
    assert rows["and says instead"] == ["", "blue circle 0.75", ""]
    assert "not asked for" not in found.out
