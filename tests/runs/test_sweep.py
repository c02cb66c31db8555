"""What a sweep measures on held-out images, and which setting it takes."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import porting
from jax_unlearn.evaluate.score import Score
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.sources.saved_statistics import SavedStatistics
from jax_unlearn.runs.sweep import Point, choose, front
from jax_unlearn.solvers.grid import Setting, Trained
from tests.running import arguments, read

SETTING = Setting("near", 0, 1.0, 1.0, 1.0, 0.01, 1)
NOTHING = LoraAdapter({}, 1.0, 1)


def point(number, forget, drift, preserve=0.9, before=1.0, kept=(None, None)):
    trained = Trained(replace(SETTING, seed=number), NOTHING, np.zeros(3), False)
    return Point(trained, Score(before, forget, 0.1, preserve, drift, *kept))


POINTS = [
    point(0, 0.0, 0.30, 0.95),
    point(1, 0.1, 0.20),
    point(2, 0.1, 0.25, 0.99),
    point(3, 0.9, 0.05),
    point(4, 1.0, 0.06),
    point(5, 0.1, 0.20),
]


def seeds(points):
    return [p.setting.seed for p in points]


def test_the_front_is_what_no_other_beats():
    assert seeds(front(POINTS)) == [0, 1, 3, 5]


def test_the_rule_is_enough_forgetting_then_the_least_price():
    assert choose(POINTS, 0.1, "drift") == (POINTS[1], True)
    assert choose(POINTS, 0.1, "preserve") == (POINTS[2], True)
    assert choose(POINTS, 0.05, "drift") == (POINTS[0], True)
    assert choose(POINTS[3:5], 0.1, "drift") == (POINTS[3], False)


def test_enough_is_a_tenth_of_what_was_named_before():
    """Not what a guess would score: of ten named once before, one is enough, of five it is not."""
    assert choose(POINTS, None, "drift") == (POINTS[1], True)
    weak = [replace(p, score=replace(p.score, before=0.5)) for p in POINTS]
    assert choose(weak, None, "drift") == (weak[0], True)
    # Whatever a guess would score.
    lucky = [replace(p, score=replace(p.score, chance=0.95)) for p in POINTS]
    assert choose(lucky, None, "drift") == (lucky[1], True)


def test_a_chosen_setting_keeps_what_else_the_samples_show():
    """Nine tenths of it: "red" of "red triangle", where triangles are forgotten."""
    points = [
        point(0, 0.0, 0.1, kept=(0.8, 0.71)),
        point(1, 0.0, 0.2, kept=(0.8, 0.73)),
        point(2, 0.0, 0.3, kept=(0.8, 0.80)),
        point(3, 0.5, 0.0, kept=(0.8, 0.80)),
    ]
    assert choose(points, None, "drift") == (points[1], True)
    # Without one: the most selective of those that forget enough.
    assert choose([points[0], points[3]], None, "drift") == (points[0], False)
    lost = point(4, 0.0, 0.05, kept=(0.8, 0.1))
    assert choose([lost, points[0], points[3]], None, "drift") == (points[0], False)
    # Where class names say nothing else, forgetting is all.
    assert choose([point(5, 0.0, 0.1), points[1]], None, "drift")[0].setting.seed == 5


COMMON = ["--lambda-forgets", "0.5", "5", "--lambda-preserves", "1"]
COMMON += ["--target-kinds", "mean", "random", "--seeds", "0", "1"]
# The earlier run's were for Adam.
OPTIONS = {
    "adam": ["--epochs", "20", "--learning-rates", "0.01", "0.02", "--sample", "16"],
    "closed_form": [],
}


@pytest.fixture(scope="module", params=OPTIONS)
def swept(request, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    options = [*COMMON, "--optimizer", request.param, *OPTIONS[request.param]]
    main(["sweep", "--statistics", str(run), "--out", str(out), *options])
    return out


def test_a_sweep_leaves_a_table_a_plot_and_the_chosen_setting(swept):
    rows = list(csv.DictReader((swept / "sweep.csv").read_text().splitlines()))
    tried = {(row["target"], row["seed"], row["learning_rate"]) for row in rows}
    if read(swept / "config.json")["optimizer"] == "adam":
        assert len(rows) == 16
        assert len(tried) > 4
    else:
        # Nothing of the mean is drawn.
        assert len(rows) == 3 * 2 * 2
        assert {(t, s) for t, s, _ in tried} == {("mean", "0"), ("random", "0"), ("random", "1")}
    assert read(swept / "sweep.json")[0].keys() == rows[0].keys()
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    (chosen,) = (row for row in rows if row["chosen"] == "True")
    assert chosen["front"] == "True"
    config = read(swept / "config.json")
    for name in ("target", "seed", "rank", "learning_rate", "lambda_forget", "lambda_preserve"):
        assert str(config[name]) == chosen[name]


def test_a_run_goes_on_from_the_chosen_setting(swept, tmp_path):
    main(["run", "--statistics", str(swept), "--out", str(tmp_path / "run")])
    (chosen,) = (row for row in read(swept / "sweep.json") if row["chosen"])
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["adapter"]["rank"] == chosen["rank"]
    assert metrics["objective"]["total"] == pytest.approx(chosen["total"], rel=1e-4)
    assert metrics["forget"]["accuracy_after"] == pytest.approx(chosen["held_out_forget"])
    assert metrics["preserve"]["accuracy_after"] == pytest.approx(chosen["held_out_preserve"])


def test_auto_is_a_sweep_and_then_a_run(run, tmp_path):
    options = ["--auto", "--optimizer", "closed_form"]
    main(["run", "--statistics", str(run), "--out", str(tmp_path / "run"), *options])
    (chosen,) = (row for row in read(tmp_path / "run" / "sweep.json") if row["chosen"])
    config = read(tmp_path / "run" / "config.json")
    assert config["lambda_preserve"] == chosen["lambda_preserve"]
    assert config["auto"] is False
    assert porting.load_peft(tmp_path / "run" / "adapter").rank == chosen["rank"]


def test_a_sweep_from_images_is_one_from_their_statistics(folder, tmp_path):
    options = ["--lambda-forgets", "1", "--lambda-preserves", "1", "--ranks", "2"]
    images, out, chosen = (tmp_path / name for name in ("images", "statistics", "chosen"))
    # A target that the sweep's own settings do not name.
    options += ["--target-kinds", "blank"]
    main(["sweep", *arguments(folder, images, epochs=10, rank=None)[1:], *options])
    main(["sweep", "--statistics", str(images), "--out", str(out), *options])
    assert (out / "sweep.csv").read_text() == (images / "sweep.csv").read_text()
    main(["run", "--statistics", str(images), "--out", str(chosen)])
    assert read(chosen / "config.json")["target"] == "blank"
    (row,) = read(images / "sweep.json")
    assert read(chosen / "metrics.json")["objective"]["total"] == pytest.approx(row["total"])


def test_bad_sweeps_leave_nothing_and_see_no_image(run, tmp_path, capsys, monkeypatch):
    def late(*_):
        raise AssertionError("the samples were asked for")

    monkeypatch.setattr(SavedStatistics, "extract", late)
    for command, options, expected in (
        ("sweep", ["--ranks", "1", "999"], "--rank 999: must be from 1 to"),
        ("sweep", ["--seeds", "0", "-1"], "--seed -1: must be at least 0"),
        ("sweep", ["--sample", "0"], "--sample 0: must be at least 1"),
        ("sweep", ["--select", "held_out"], "--select held_out: a sweep has no images"),
        ("sweep", ["--optimizer", "leace"], "--optimizer leace: has nothing to sweep"),
        (
            "sweep",
            ["--until-forgotten", "0.5"],
            "--until-forgotten: has no effect here: a sweep tries its own λ's",
        ),
        ("sweep", ["--auto"], "--auto: has no effect here: it is not an option of this command"),
        (
            "sweep",
            ["--optimizer", "closed_form", "--learning-rates", "0.1"],
            "--learning-rates: has no effect here: it is for --optimizer adam",
        ),
        (
            "sweep",
            ["--optimizer", "closed_form", "--target-kinds", "mean", "--seeds", "0", "1"],
            "--seeds: these targets do not depend on the seed in closed form; give one value",
        ),
        (
            "sweep",
            ["--lambda-forget", "2"],
            "--lambda-forget: has no effect here: the sweep tries 0.65 1.3 2.6",
        ),
        ("sweep", ["--preset", "faithful"], "--preset: --statistics starts from the earlier run"),
        ("run", ["--auto", "--select", "held_out"], "--select held_out: a sweep has no images"),
        (
            "run",
            ["--auto", "--until-forgotten", "0.5"],
            "--until-forgotten: has no effect here: a sweep tries its own λ's",
        ),
        ("run", ["--auto", "--rank", "3"], "--rank: has no effect here: the sweep tries 1 5"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([command, "--statistics", str(run), "--out", str(tmp_path / "out"), *options])
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
