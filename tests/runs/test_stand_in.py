"""Runs with the target stand_in, through the command line."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import porting
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.presets import start_settings
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from tests.running import arguments, read

STAND_IN = {"optimizer": None, "epochs": None, "target": "stand_in", "rank": 4}
LINEARS = ["deepstack_merger_list.0.linear_fc2", "deepstack_merger_list.1.linear_fc2",
           "merger.linear_fc2"]  # fmt: skip


@pytest.fixture(scope="module")
def stood(folder, tmp_path_factory):
    """A run that moves red triangles onto the nearest class."""
    out = tmp_path_factory.mktemp("stand-in") / "run"
    main(arguments(folder, out, **STAND_IN))
    return out


def tensors(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def refused(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_run_moves_the_concept_onto_the_nearest_class(stood):
    metrics, config = read(stood / "metrics.json"), read(stood / "config.json")
    # λ's of this target; the rank was given.
    assert (config["lambda_forget"], config["lambda_preserve"], config["rank"]) == (1.0, 1.0, 4)
    assert (metrics["optimizer"], metrics["adapter"]["rank"]) == ("stand_in", 4)
    assert metrics["adapter"]["bias"]
    assert sorted(metrics["adapter"]["targets"]) == LINEARS
    assert metrics["objective"]["forget"] < 0.7 * read_first(stood)["forget"]
    (found,) = metrics["reidentification"]
    assert (found["concept"], found["counterpart"]) == ("red triangle", "blue circle")
    # Two held-out images of each: readers are fitted on those of the edit, which the output says.
    assert (found["fresh"], found["images"]) == (False, {"forget": 2, "counterpart": 2})
    assert set(found["few_shot"]["mean"]) == {"1", "3"}
    assert any("only 2 held-out images" in line for line in metrics["warnings"])
    (expected,) = metrics["expected"]["concepts"]
    assert (expected["images"], expected["stand_in_images"]) == (8, 8)
    assert set(metrics["expected"]["drift"]) == set(metrics["drift_by_class"]) == {
        "astronaut", "blue circle",
    }  # fmt: skip
    assert "Finding red triangle again" in (stood / "report.html").read_text()


def read_first(run):
    import json

    return json.loads((run / "history.jsonl").read_text().splitlines()[0])


def test_the_saved_statistics_give_the_same_bytes(stood, tmp_path):
    main(["run", "--statistics", str(stood), "--out", str(tmp_path / "out")])
    ours, theirs = (
        (run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in (tmp_path / "out", stood)
    )
    assert ours == theirs
    ours, theirs = (read(run / "metrics.json") for run in (tmp_path / "out", stood))
    for key in ("reidentification", "expected", "drift_by_class"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["--strength", "gentle"], ["--lambda-preserve", "3"]),
        (["--strength", "strong"], ["--lambda-forget", "10", "--lambda-preserve", "3"]),
    ],
)
def test_a_strength_is_a_ratio_of_the_weights(stood, tmp_path, options, weights):
    for name, words in {"named": options, "given": weights}.items():
        main(["run", "--statistics", str(stood), "--out", str(tmp_path / name), *words])
    named, given, before = (tensors(run) for run in
                            (tmp_path / "named", tmp_path / "given", stood))  # fmt: skip
    for name, x in named.items():
        np.testing.assert_allclose(x, given[name], rtol=1e-4, atol=1e-5)
    assert any(not np.array_equal(x, before[name]) for name, x in named.items())


def test_a_sweep_tries_ratios_and_ranks_on_the_same_features(stood, tmp_path):
    out = tmp_path / "sweep"
    tries = ["--lambda-preserves", "1", "2", "--lambda-forgets", "1", "2", "--ranks", "2", "3"]
    main(["sweep", "--statistics", str(stood), "--out", str(out), *tries])
    rows = read(out / "sweep.json")
    # The weights 1 to 1 and 2 to 2 are the same problem.
    assert len(rows) == 3 * 2
    main(["run", "--config", str(out / "config.json"), "--out", str(tmp_path / "run")])
    chosen = next(row for row in rows if row["chosen"])
    objective = read(tmp_path / "run" / "metrics.json")["objective"]
    assert objective["total"] == pytest.approx(chosen["total"], rel=1e-4)


def test_a_sweep_has_ranks_of_its_own_for_this_target():
    config = start_settings(checkpoint=ASSETS / "checkpoint", target="stand_in")
    assert config.solver.rank == 32
    from jax_unlearn.runs.settings.config import build
    from jax_unlearn.runs.settings.sweep_config import sweep_start

    tried = build(SweepConfig, sweep_start(config), config).settings("qwen_images", "stand_in")
    assert {one.rank for one in tried} == {8, 32}
    assert len(tried) == 24


def test_a_folder_can_take_the_place(folder, tmp_path, capsys):
    images = tmp_path / "plain"
    images.mkdir()
    for number, file in enumerate(sorted((ASSETS / "images" / "train" / "coffee").iterdir())[:12]):
        shutil.copy(file, images / f"{number}.jpg")
    out = tmp_path / "run"
    main(arguments(folder, out, **STAND_IN, stand_in=images))
    metrics = read(out / "metrics.json")
    # A fifth of it is held out.
    assert (metrics["samples"]["stand_in"], metrics["samples"]["stand_in_held_out"]) == (9, 3)
    (found,) = metrics["reidentification"]
    assert (found["counterpart"], found["images"]["counterpart"]) == (str(images), 3)
    (one,) = read_statistics(out).extracted().stand_ins
    assert {len(x) for x in one.means.values()} == {9}
    main(["evaluate", str(out)])
    assert read(out / "metrics.json")["reidentification"] == metrics["reidentification"]


def test_classes_to_keep_can_be_named(folder, tmp_path):
    main(arguments(folder, tmp_path / "run", **STAND_IN, stand_in="astronaut"))
    (found,) = read(tmp_path / "run" / "metrics.json")["reidentification"]
    assert found["counterpart"] == "astronaut"


def test_several_classes_are_solved_together(folder, tmp_path):
    both = tmp_path / "forget"
    shutil.copytree(folder / "forget", both)
    (both / "coffee").mkdir()
    for file in sorted((ASSETS / "images" / "train" / "coffee").iterdir())[:10]:
        shutil.copy(file, both / "coffee")
    main(arguments(folder, tmp_path / "run", **STAND_IN, forget=both))
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["adapter"]["rank"] == 8
    assert [one["concept"] for one in metrics["reidentification"]] == ["coffee", "red triangle"]


def test_the_merged_checkpoint_has_the_change_of_the_bias(stood, tmp_path):
    main(["export", str(stood), "--out", str(tmp_path / "merged")])
    before = porting.load_vision_tower(read(stood / "config.json")["checkpoint"])
    after = porting.load_vision_tower(tmp_path / "merged")
    pair = porting.load_peft(stood / "adapter").pairs["merger.linear_fc2"]
    (_, old), (_, new) = (tower.linear("merger.linear_fc2") for tower in (before, after))
    np.testing.assert_allclose(new - old, pair.bias, atol=1e-6)
    assert np.abs(pair.bias).max() > 1e-4


@pytest.mark.usefixtures("small_batches")
def test_the_image_side_of_clip(tmp_path):
    images = tmp_path / "images"
    # Of all 89 classes the encoder takes five seconds.
    for name in ("red triangle", "red circle", "blue triangle", "cat", "rocket", "rose"):
        shutil.copytree(CLIP_ASSETS / "images" / "test" / name, images / name)
    options = ["--checkpoint", CLIP_ASSETS / "checkpoint", "--forget", images, "--preserve", images]
    options += ["--concept", "red triangle", "--target", "stand_in", "--rank", "8"]
    main(["run", *map(str, options), "--out", str(tmp_path / "run")])
    metrics = read(tmp_path / "run" / "metrics.json")
    (found,) = metrics["reidentification"]
    # One row per image: there are no tokens to pool.
    assert set(found["few_shot"]) == {"mean"}
    assert metrics["adapter"]["targets"] == ["visual_projection"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam"}, "--optimizer: has no effect here: it is for --target random"),
        ({"linears": ["linear_fc1"]}, "--linears: has no effect here: it is for --target"),
        ({"granularity": "tokens"}, "--granularity: has no effect here: --target stand_in uses"),
        ({"lambda_weight": 2}, "--lambda-weight: has no effect here: it is for --optimizer"),
        ({"strength": "strong", "lambda_preserve": 2}, "--lambda-preserve: has no effect here"),
        ({"lambda_forget": 0}, "--lambda-forget 0: must be above 0 with --target stand_in"),
        ({"stand_in": "unicorn"}, "--stand-in unicorn: is neither a folder nor among the classes"),
        ({"target": "near", "stand_in": "astronaut"}, "--stand-in: has no effect here"),
        ({"target": "near", "strength": "strong"}, "--strength: has no effect here"),
        ({"preset": "faithful", "rank": None}, "cannot be used with --target stand_in"),
        ({"rank": 1000}, "--rank 1000: must be from 1 to"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(folder, tmp_path, capsys, options, said):
    words = arguments(folder, tmp_path / "run", **STAND_IN | options)
    assert said in refused(capsys, words)
    assert not (tmp_path / "run").exists()


def test_another_target_starts_from_its_own_defaults(stood, tmp_path, capsys):
    main(["run", "--statistics", str(stood), "--out", str(tmp_path / "near"), "--target", "near"])
    config = read(tmp_path / "near" / "config.json")
    assert (config["rank"], config["lambda_forget"], config["lambda_preserve"]) == (5, 1.3, 2.5)
    again = ["run", "--config", str(tmp_path / "near" / "config.json"), "--target", "stand_in"]
    # Which is more than the tiny Linears take.
    assert "--rank 32: must be from 1 to" in refused(capsys, [*again, "--out", str(tmp_path / "x")])


def test_a_sweep_of_this_target_has_no_others(stood, tmp_path, capsys):
    words = ["sweep", "--statistics", str(stood), "--out", str(tmp_path / "x")]
    words += ["--target-kinds", "near", "stand_in"]
    assert "--target-kinds: stand_in is swept alone" in refused(capsys, words)


def test_names_have_no_stand_in(tmp_path, capsys):
    words = f"run --checkpoint {CLIP_ASSETS / 'checkpoint'} --target stand_in --rank 4 --out x"
    words = [*words.split(), "--forget-text", "cat", "--preserve-text", "coffee"]
    assert "--target stand_in: needs many images of a class" in refused(capsys, words)


def test_statistics_of_another_target_have_no_stand_in(run, tmp_path, capsys):
    words = ["run", "--statistics", str(run), "--out", str(tmp_path / "x"), "--target", "stand_in"]
    assert "these features have no stand-in images" in refused(capsys, [*words, "--rank", "4"])
