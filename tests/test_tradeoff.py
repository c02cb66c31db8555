"""What a sweep measures on held-out images, and which setting it takes."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import porting
from jax_unlearn.cli import main
from jax_unlearn.evaluate.score import Score
from jax_unlearn.grid import Setting, Trained
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.tradeoff import Point, choose, front
from tests.runs import arguments, read

SETTING = Setting("near", 0, 1.0, 1.0, 1.0, 0.01, 1)
NOTHING = LoraAdapter({}, 1.0, 1)


def point(number, forget, drift, preserve=0.9):
    trained = Trained(replace(SETTING, seed=number), NOTHING, np.zeros(3), False)
    return Point(trained, Score(forget, 0.1, preserve, drift))


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


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    options = ["--lambda-forgets", "0.5", "5", "--target-kinds", "mean", "near"]
    main(["sweep", "--statistics", str(run), "--out", str(out), "--epochs", "20", *options])
    return out


def test_a_sweep_leaves_a_table_a_plot_and_the_chosen_setting(swept):
    rows = list(csv.DictReader((swept / "sweep.csv").open()))
    assert len(rows) == 2 * 2 * 4 * 2
    assert read(swept / "sweep.json")[0].keys() == rows[0].keys()
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    (chosen,) = (row for row in rows if row["chosen"] == "True")
    assert chosen["front"] == "True"
    config = read(swept / "config.json")
    for name in ("target", "rank", "lambda_forget", "lambda_preserve"):
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
    main(["run", "--statistics", str(run), "--out", str(tmp_path / "run"), "--auto"])
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
    main(["sweep", *arguments(folder, images, epochs=10)[1:], *options])
    main(["sweep", "--statistics", str(images), "--out", str(out), *options])
    assert (out / "sweep.csv").read_text() == (images / "sweep.csv").read_text()
    main(["run", "--statistics", str(images), "--out", str(chosen)])
    assert read(chosen / "config.json")["target"] == "blank"
    (row,) = read(images / "sweep.json")
    assert read(chosen / "metrics.json")["objective"]["total"] == pytest.approx(row["total"])


def test_bad_sweeps_leave_nothing(run, tmp_path, capsys):
    for options, expected in (
        (["--ranks", "999"], "--rank 999: must be from 1 to"),
        (["--sample", "0"], "--sample 0"),
        (["--optimizer", "leace"], "--optimizer leace: has nothing to sweep"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["sweep", "--statistics", str(run), "--out", str(tmp_path / "out"), *options])
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
