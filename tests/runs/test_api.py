"""`jax_unlearn.unlearn`: the same run as the command line's, and the run that it returns."""

import json
import shutil

import pytest

import jax_unlearn
import porting
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.assets import ASSETS
from tests.running import arguments


def test_it_is_the_command_line_run(folder, tmp_path):
    main(arguments(folder, tmp_path / "shell", optimizer=None, epochs=None))
    run = jax_unlearn.unlearn(
        folder / "checkpoint",
        forget=str(folder / "forget"),
        preserve=folder / "preserve",
        out=str(tmp_path / "python"),
        rank=2,
        targets=["all"],
        progress=False,
    )
    weights = "adapter/adapter_model.safetensors"
    ours, theirs = ((tmp_path / name / weights).read_bytes() for name in ("python", "shell"))
    assert ours == theirs
    written = json.loads((tmp_path / "python" / "metrics.json").read_text())
    assert run.metrics == {name: value for name, value in written.items() if name != "digest"}
    assert (run.adapter.rank, run.config.solver.rank) == (2, 2)
    assert porting.load_peft(run.save_peft(tmp_path / "peft")).pairs.keys() == set(
        run.metrics["adapter"]["targets"]
    )
    porting.load_vision_tower(run.merge(tmp_path / "merged"))


def test_bad_input_is_an_error_and_leaves_nothing(folder, tmp_path):
    folders = {"forget": folder / "forget", "preserve": folder / "preserve"}
    given = {"out": tmp_path / "run", **folders}
    with pytest.raises(jax_unlearn.UserError, match="--epochs: has no effect here"):
        jax_unlearn.unlearn(folder / "checkpoint", epochs=3, **given)
    with pytest.raises(TypeError, match="epoks: is not a setting of a run"):
        jax_unlearn.unlearn(folder / "checkpoint", epoks=3, **given)
    with pytest.raises(jax_unlearn.UserError, match=r"metrics\.json"):
        _ = jax_unlearn.Run(tmp_path / "run").metrics
    assert not (tmp_path / "run").exists()


def test_the_model_is_asked_without_and_with_the_adapter(tmp_path):
    for side, name in ("forget", "astronaut"), ("preserve", "cat"), ("preserve", "rocket"):
        shutil.copytree(ASSETS / "images" / "train" / name, tmp_path / side / name)
    run = jax_unlearn.unlearn(
        ASSETS / "checkpoint",
        forget=tmp_path / "forget",
        preserve=tmp_path / "preserve",
        out=tmp_path / "run",
        progress=False,
    )
    image = min((ASSETS / "images" / "test" / "astronaut").iterdir())
    before, after = run.ask(image, "what is this?")
    assert before == "astronaut"
    assert after != before


def test_every_public_name_can_be_imported():
    assert set(jax_unlearn.__all__) <= set(dir(jax_unlearn))
    for name in jax_unlearn.__all__:
        assert getattr(jax_unlearn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = jax_unlearn.nonesuch
