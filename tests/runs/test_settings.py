"""Settings: five groups with flat names, one set of defaults, presets that are values alone."""

from dataclasses import fields
from pathlib import Path

import pytest

import jax_unlearn
from jax_unlearn import SolverConfig
from jax_unlearn.runs.run_directory import write_config
from jax_unlearn.runs.settings.config import RunConfig, flat, read_config, setting_types
from jax_unlearn.runs.settings.presets import PRESETS, start_settings
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from jax_unlearn.runtime.used_if import leaf_fields, option
from tests.running import parse

NOWHERE = {"checkpoint": Path("nowhere"), "out": Path("out")}


def test_python_and_the_command_line_solve_the_same_problem():
    assert jax_unlearn.TrainConfig is SolverConfig
    words = ["run", "--checkpoint", str(ASSETS / "checkpoint"), "--out", "out"]
    for config in (RunConfig.of(**NOWHERE), parse(words)):
        for one in fields(SolverConfig):
            assert getattr(config.solver, one.name) == getattr(SolverConfig(), one.name)
        weights = config.solver.loss_weights()
        assert weights == SolverConfig().loss_weights()
        assert (weights.forget, weights.preserve, weights.weight) == (1.3, 2.5, 1.0)
        assert weights.reduction == "mean"


def test_a_setting_is_found_in_its_group_by_its_name():
    config = RunConfig.of(**NOWHERE, rank=3, target="mean", dtype="bfloat16", concept="x", seed=4)
    assert (config.solver.rank, config.solver.seed) == (3, 4)
    assert (config.objective.target, config.extraction.dtype) == ("mean", "bfloat16")
    assert (config.samples.concept, config.execution.out) == ("x", Path("out"))
    other = config.replace(rank=4, overwrite=True)
    assert flat(other) == flat(config) | {"rank": 4, "overwrite": True}
    assert RunConfig.of(**flat(config)) == config
    for wrong in (RunConfig.of, config.replace):
        with pytest.raises(TypeError, match="lambda_keep: is not a setting of a run"):
            wrong(**NOWHERE, lambda_keep=1.0)
    with pytest.raises(TypeError, match="out"):
        RunConfig.of(checkpoint=Path("nowhere"))


def test_no_two_settings_share_a_name_and_each_says_what_it_is_for():
    groups = [{one.name for one in fields(group.type)} for group in fields(RunConfig)]
    assert sum(map(len, groups)) == len(leaf_fields(RunConfig)) == len(set().union(*groups))
    assert option("keep_means") == "--keep-means"


def test_a_config_comes_back_from_its_file(tmp_path):
    """Paths absolute, lists as tuples; but for how the run was carried out."""
    given = {
        "forget_text": ("a.txt", "cat"),
        "preserve_text": ("dog",),
        "images": tmp_path / "images",
        "other_images": (tmp_path / "one", tmp_path / "two"),
        "until_forgotten": 0.5,
        "alpha": 2.0,
    }
    config = RunConfig.of(checkpoint=tmp_path / "clip", out=tmp_path, **given)
    write_config(tmp_path, config.replace(workers=3, mesh="data=1", overwrite=True))
    assert read_config(tmp_path) == config
    assert {*setting_types(RunConfig)} == {*flat(config)}


@pytest.mark.parametrize(("source", "preset"), [(s, p) for s, of in PRESETS.items() for p in of])
def test_a_preset_is_its_values_and_nothing_else(source, preset):
    assets = ASSETS if source == "qwen_images" else CLIP_ASSETS
    names = ("cat",) if source == "clip_names" else ()
    given = {"checkpoint": assets / "checkpoint", "out": Path("out"), "forget_text": names}
    found = start_settings(preset, **given)
    assert found == RunConfig.of(**given, **PRESETS[source][preset])
    words = ["run", "--checkpoint", str(given["checkpoint"]), "--out", "out", "--preset", preset]
    words += ["--forget-text", *names] if names else []
    assert parse(words) == found
    # An option beside it is another value of the same setting, and the rest stays.
    assert parse([*words, "--target", "shift"]) == found.replace(target="shift")
