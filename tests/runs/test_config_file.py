"""--config: settings from a file, and the config.json of a run."""

import json

import pytest

from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.config import flat, read_config
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from tests.running import parse

TEXT = """
checkpoint: {checkpoint}
forget: cats
rank: 3
lambda-forget: 2
targets: [merger, deepstack_merger_list.0]
overwrite: true
save_statistics: no
alpha: null
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT.format(checkpoint=ASSETS / "checkpoint"))
    return path


def test_options_override_the_settings_of_a_file(file):
    config = parse(["run", "--config", str(file), "--out", "out", "--rank", "4"])
    assert config.solver.rank == 4
    assert (config.solver.lambda_forget, config.solver.alpha) == (2.0, None)
    assert config.objective.targets == ("merger", "deepstack_merger_list.0")
    assert config.execution.overwrite
    assert config.execution.save_statistics == "no"
    assert str(config.samples.forget) == "cats"


def test_a_runs_own_config_repeats_it(run, tmp_path, capsys):
    words = ["run", "--config", str(run / "config.json"), "--out", str(tmp_path / "again")]
    assert flat(parse(words)) == flat(read_config(run)) | {"out": tmp_path / "again"}
    main([*words, "--epochs", "3"])
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert settings["epochs"] == 3
    assert settings["rank"] == read_config(run).solver.rank


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: [", "cannot be read as YAML or JSON"),
        ("- rank", "must map names of settings to values"),
        ("rank: {a: 1}", "rank: must be a text, a number or a list of those"),
    ],
)
def test_a_file_of_another_form_is_one_line(file, text, message):
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse(["run", "--config", str(file), "--out", "out"])
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("line", ["epoks: 3", "rank: many"])
def test_a_setting_that_is_none_is_refused(file, line):
    file.write_text(file.read_text() + line)
    with pytest.raises(UserError, match=f"--{line.split(':')[0]}"):
        parse(["run", "--config", str(file), "--out", "out"])
