"""The command attack: which attacks run, resuming, and what attacks.json says."""

import shutil
from importlib.metadata import EntryPoint

import pytest

from jax_unlearn.attacks import registry
from jax_unlearn.attacks.registry import BUILT_IN, EDITED, Attack, Trial, known
from jax_unlearn.attacks.summary import advantage, strongest
from jax_unlearn.runs import attack as command
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from tests.running import arguments

# The quick ones of the attacks, and one that asks the model.
KINDS = ("readers", "membership", "quantisation")


@pytest.fixture
def copied(shipped, tmp_path):
    """A copy of the run, for its attacks.json."""
    return shutil.copytree(shipped, tmp_path / "run")


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("jax-unlearn: ")]
    return line


def rows_of(found, subject, **setting):
    return [
        row
        for row in found["rows"]
        if row["subject"] == subject and setting.items() <= (row | row["setting"]).items()
    ]


def test_attacks_and_controls(copied, capsys):
    main(["attack", str(copied), "--kinds", *KINDS])
    found = capsys.readouterr()
    report = read_sealed(copied / "attacks.json")
    assert set(report["attacks"]) == set(KINDS)
    assert report["optimised_against"] == "none"
    assert report["images"]["tested"] == {"forget": 6, "counterpart": 6, "others": 12}

    readers = report["attacks"]["readers"]
    # The model knew the concept; the control with exchanged labels knows nothing.
    (before,) = rows_of(readers, "before", pool="mean", reader="linear")
    (permuted,) = rows_of(readers, "permuted labels", pool="mean", reader="linear")
    assert before["balanced"] >= 0.95
    assert abs(permuted["balanced"] - 0.5) <= 0.25
    assert before["true_positive_rate"] - before["false_positive_rate"] == pytest.approx(
        2 * before["balanced"] - 1
    )
    assert rows_of(readers, "untrained tower", pool="mean", reader="linear")

    bits = report["attacks"]["quantisation"]
    for width in (8, 4):
        (edited,) = rows_of(bits, EDITED, bits=width)
        (before,) = rows_of(bits, "before", bits=width)
        assert (edited["true_positive_rate"], before["true_positive_rate"]) == (0, 1)
    coded = [row for row in bits["rows"] if row["setting"].get("format") == "torchao int8"]
    assert {row["subject"] for row in coded} == {EDITED, "before"}
    assert bits["left_out"] == []
    for one in report["attacks"].values():
        assert len(one["done"]) == one["trials"]
        assert one["does"].endswith(".")
        assert {row["subject"] for row in one["rows"]} == {EDITED, *one["controls"]}
    assert "quantisation: bits 8" in found.out
    assert str(copied / "attacks.json") in found.out
    page = (copied / "report.html").read_text()
    assert "Attacks and their controls" in page

    # Nothing is left to do, and other options are refused.
    main(["attack", str(copied), "--kinds", *KINDS])
    assert read_sealed(copied / "attacks.json") == report
    line = refused(capsys, "attack", copied, "--kinds", "readers", "--seeds", 2)
    assert "was measured with seeds 1, not 2; pass --again" in line


def test_an_interrupted_suite_goes_on_to_the_same_rows(copied, monkeypatch):
    words = ["attack", str(copied), "--kinds", "quantisation"]
    main(words)
    whole = read_sealed(copied / "attacks.json")["attacks"]["quantisation"]
    (copied / "attacks.json").unlink()
    measured, measure = [], command.measure

    def stops_at_the_third(trial, found):
        measured.append(trial.name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        measure(trial, found)

    monkeypatch.setattr(command, "measure", stops_at_the_third)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert len(read_sealed(copied / "attacks.json")["attacks"]["quantisation"]["done"]) == 2
    main(words)
    # The third was begun twice, the first two once.
    assert len(measured) == whole["trials"] + 1
    again = read_sealed(copied / "attacks.json")["attacks"]["quantisation"]
    assert again["rows"] == whole["rows"]


def test_attacks_that_need_torch_are_named_where_it_is_missing(copied, monkeypatch, capsys):
    monkeypatch.setattr("jax_unlearn.attacks.target.find_spec", lambda name: None)
    line = refused(capsys, "attack", copied, "--kinds", "relearning")
    assert "--kinds relearning: needs torch: pip install 'jax-unlearn[torch]'" in line
    monkeypatch.setattr(registry, "BUILT_IN", ("membership", "quantisation"))
    main(["attack", str(copied)])
    found = capsys.readouterr()
    report = read_sealed(copied / "attacks.json")
    assert report["not_run"] == {"quantisation": "needs torch: pip install 'jax-unlearn[torch]'"}
    assert "quantisation: not run: needs torch" in found.err
    assert "membership: answer likelihood: not tried: needs torch" in found.err


def test_what_is_refused(copied, folder, tmp_path, capsys):
    line = refused(capsys, "attack", copied, "--kinds", "telepathy")
    assert "--kinds telepathy: must be any of readers, membership" in line
    assert "--seeds 0: must be at least 1" in refused(capsys, "attack", copied, "--seeds", 0)
    (copied / "attacks.json").write_text('{"of": {}}\n')
    assert "attacks.json: was made by an earlier version" in refused(capsys, "attack", copied)
    from jax_unlearn.runtime.assets import CLIP_ASSETS

    names = tmp_path / "names"
    main(["run", "--checkpoint", str(CLIP_ASSETS / "checkpoint"), "--forget-text", "red triangle",
          "--preserve-text", "blue circle", "red circle", "--out", str(names)])  # fmt: skip
    assert "forgets names through CLIP's text side" in refused(capsys, "attack", names)


def test_two_held_out_images_are_too_few_to_ask(folder, tmp_path, capsys):
    """Of a class with one held-out image nothing is left to test on."""
    main(arguments(folder, tmp_path / "run"))
    main(["attack", str(tmp_path / "run"), "--kinds", "readers"])
    found = capsys.readouterr()
    assert "too few held-out images to halve" in found.err
    report = read_sealed(tmp_path / "run" / "attacks.json")
    subjects = {row["subject"] for row in report["attacks"]["readers"]["rows"]}
    assert subjects == {EDITED, "before", "permuted labels"}


def attack_of(name, rows=()):
    trial = Trial(EDITED, {"n": 1}, 0, lambda: list(rows))
    budget = {"small": "none", "full": "none"}
    return Attack(name, "Does nothing.", budget, {}, False, lambda run: iter([trial]))


def test_attacks_can_be_added(monkeypatch, copied):
    assert [*known()] == [
        "readers", "membership", "image_changes", "quantisation", "survival", "in_context",
        "universal_perturbation", "soft_prompt", "relearning", "relearning_merger",
    ]  # fmt: skip
    assert len(BUILT_IN) == len(known())
    monkeypatch.setattr(registry, "_registered", {})
    mine = attack_of("mine", [{"true_positive_rate": 0.25, "false_positive_rate": 0.0}])
    registry.register(mine)
    with pytest.raises(ValueError, match="mine: an attack of that name exists"):
        registry.register(attack_of("mine"))
    main(["attack", str(copied), "--kinds", "mine"])
    best = read_sealed(copied / "attacks.json")["attacks"]["mine"]["strongest"]
    assert best["edited"] == {"true_positive_rate": 0.25, "false_positive_rate": 0.0}


@pytest.mark.parametrize(("loaded", "said"), [
    (attack_of("readers"), "an attack named readers exists"),
    ("text", "is no jax_unlearn.attacks.registry.Attack"),
])  # fmt: skip
def test_an_installed_attack_that_is_none_is_refused(monkeypatch, loaded, said):
    point = EntryPoint("theirs", "a:b", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: loaded)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match=said):
        known()


def row(subject, setting, seed, true, false, **more):
    rates = {"true_positive_rate": true, "false_positive_rate": false}
    return {"subject": subject, "setting": setting, "seed": seed, **rates, **more}


def test_the_strongest_setting_is_that_of_the_edited_model():
    rows = [
        row(EDITED, {"n": 4}, 0, 0.9, 0.8, others=1.0, steps=10),
        row(EDITED, {"n": 4}, 0, 0.5, 0.1, others=0.5, steps=60),
        row(EDITED, {"n": 4}, 1, 0.7, 0.1, others=0.7, steps=30),
        row(EDITED, {"n": 8}, 0, 0.3, 0.2, others=1.0, steps=10),
        row("control", {"n": 8}, 0, 1.0, 0.0),
        row("control", {"n": 4}, 0, 0.2, 0.1),
    ]
    best = strongest(rows)
    # Of each seed its best row by TPR − FPR, then the mean over seeds.
    assert best.edited == pytest.approx(
        {"true_positive_rate": 0.6, "false_positive_rate": 0.1, "others": 0.6}
    )
    assert best.setting == {"n": 4, "steps": 60}
    assert best.controls["control"]["true_positive_rate"] == 0.2
    assert advantage({"auc": 0.75}) == advantage({"balanced": 0.75}) == 0.5


def test_a_setting_in_which_the_original_model_does_not_name_it_says_nothing():
    rows = [
        row(EDITED, {"change": "dark"}, 0, 0.3, 0.0, others=0.1),
        row("before", {"change": "dark"}, 0, 0.4, 0.0, others=0.1),
        row(EDITED, {"change": "none"}, 0, 0.1, 0.0, others=1.0),
        row("before", {"change": "none"}, 0, 1.0, 0.0, others=1.0),
    ]
    best = strongest(rows)
    assert (best.setting, best.says_nothing) == ({"change": "none"}, ["change dark"])
    assert strongest(rows[:2]) is None
