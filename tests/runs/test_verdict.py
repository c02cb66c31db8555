"""The report's verdict and comparison, from metrics whose meaning is known."""

import pytest

from jax_unlearn.runs.cli import main
from jax_unlearn.runs.report.verdict import finders, verdict


def metrics(before=1.0, after=0.0, few=0.5, many=0.5):
    named = {"question": "what is this?", "chance": 0.25}
    readers = {"linear": {w: {"balanced": b} for w, b in (("before", 1.0), ("after", many))}}
    return {
        "forget": {"accuracy_before": 1.0, "accuracy_after": 0.1, "chance": 0.25},
        "preserve": {"accuracy_before": 0.9, "accuracy_after": 0.8},
        "paths": {},
        "reidentification": [
            {
                "few_shot": {"mean": {
                    "3": {"before": [0.8, 0.7, 0.9], "after": [0.5, 0.5, 0.5]},
                    "10": {"before": [1.0, 1.0, 1.0], "after": [few, few, few]},
                    "30": {"before": [1.0, 1.0, 1.0], "after": [1.0, 1.0, 1.0]},
                }},
                "refitted": {"mean": readers},
            }
        ],
        "vlm": {
            "before": {"named": [named | {"share": before, "instead": {}}], "others": 0.99},
            "after": {"named": [named | {"share": after, "instead": {"cat": 0.75}}],
                      "others": 0.98},
        },
    }  # fmt: skip


def relearned(true, false):
    rates = {"true_positive_rate": true, "false_positive_rate": false}
    best = {"edited": rates, "setting": {"images": 4}, "controls": {}}
    return {"attacks": {"relearning": {"strongest": best}}}


def levels(m, attacks=None):
    return {one.who: one.level for one in finders(m, attacks)}


def test_the_verdict_has_what_the_model_says_and_who_finds_it():
    m = metrics(few=0.54, many=0.7)
    said, found = verdict(m, "dog", finders(m, relearned(0.9, 0.05)))
    assert said == (
        "Asked “what is this?”, the model names “dog” in 0.0 % of its held-out images (before "
        "100.0 %); its most frequent other answer is “cat”; about other images it is right in "
        "98.0 % (before 99.0 %)."
    )
    assert found == (
        "It is hidden from somebody who asks the model and somebody with 10 labelled images of "
        "each side; partly readable by somebody with all labelled images there are and the best "
        "reader; still readable by somebody who fine-tunes the language model on 4 images and "
        "somebody who has the original weights and puts them back."
    )


@pytest.mark.parametrize(
    ("few", "level"), [(0.549, "hidden"), (0.56, "partly"), (0.76, "readable")]
)
def test_a_level_is_the_share_beyond_a_guess(few, level):
    assert levels(metrics(few=few))["somebody with 10 labelled images of each side"] == level


def test_true_positives_alone_are_no_relearning():
    """As after few steps, when everything is named alike."""
    (level,) = [v for k, v in levels(metrics(), relearned(1.0, 0.96)).items() if "on 4" in k]
    assert level == "hidden"
    asked = levels(metrics())
    assert asked["somebody who fine-tunes the language model"] == "unknown"


def test_a_before_at_chance_says_nothing():
    m = metrics(before=0.2, after=0.0)
    said, found = verdict(m, "dog", finders(m, None))
    assert "named “dog” no more often than a guess before the edit already" in said
    assert levels(m)["somebody who asks the model"] == "unknown"
    assert "somebody who asks" not in found


def test_a_comparison_names_what_differs(run, tmp_path, capsys):
    other = tmp_path / "other"
    main(["run", "--statistics", str(run), "--rank", "1", "--out", str(other)])
    out = tmp_path / "compared.html"
    main(["report", "--compare", str(run), str(other), "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    page = out.read_text()
    differ = page[page.index("Settings that differ") :]
    assert "<td>rank</td><td>2</td><td>1</td>" in differ
    assert "<td>checkpoint</td>" not in differ
    assert "named by a probe fitted before" in page
    for words, said in (
        (["--compare", str(run)], "--compare: give the directories of at least two runs"),
        (["--compare", str(run), str(tmp_path)], f"{tmp_path}"),
        (["--compare", str(run), str(other)], f"{out}: exists; choose another name"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["report", *words, "--out", str(out)])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
