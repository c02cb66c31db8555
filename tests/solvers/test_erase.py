"""LEACE through a run: its loss, and what a probe reads after it."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

import porting
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.features.statistics import statistics
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.objective.loss import LossWeights
from jax_unlearn.objective.targets import Target, neutral_target
from jax_unlearn.runs.cli import main
from jax_unlearn.solvers.leace import Erasable, erase
from tests import problems, tiny
from tests.running import LEACE, arguments, read


def erasable(own, split):
    """A path of 60 images, and the same rows: (Erasable, X_f, T, X_p)."""
    weight, bias, x_f, _, x_p = problems.arrays(n_forget=120, n_preserve=90)
    image = np.arange(120) // 2
    constant = np.random.default_rng(3).normal(size=(60, problems.E)).astype(np.float32)
    target = Target(constant, own=own)

    def output(x):
        return x @ weight.T + bias

    def parts(x, image, output, middle):
        cuts = [(0, middle), (middle, len(x))] if split else [(0, len(x))]
        return [statistics(x[a:b], image[a:b], output) for a, b in cuts]

    path = Erasable(
        weight,
        bias,
        parts(x_f, image, output, 50),
        parts(x_p, np.arange(90), None, 10),
        target,
    )
    return path, x_f, target.rows(output(x_f), image), x_p


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_the_terms_are_those_of_the_rows(own, split, reduction):
    path, x_f, target, x_p = erasable(own, split)
    result = erase({"x": path}, LossWeights(1.3, 0.4, 0.7, reduction))
    pair = result.adapter.pairs["x"]
    change = [(x @ pair.a.T) @ pair.b.T + pair.bias for x in (x_f, x_p)]
    missed = target - (x_f @ path.weight.T + path.bias)
    roots = (120**0.5, 90**0.5) if reduction == "mean" else (1, 1)
    start, end = result.history
    assert start["forget"] == pytest.approx(1.3 * np.linalg.norm(missed) / roots[0], rel=1e-5)
    assert (start["preserve"], start["weight"]) == (0, 0)
    found = 1.3 * np.linalg.norm(missed - change[0]) / roots[0]
    assert end["forget"] == pytest.approx(found, rel=1e-5)
    assert end["preserve"] == pytest.approx(0.4 * np.linalg.norm(change[1]) / roots[1], rel=1e-5)
    whole = np.column_stack([pair.b @ pair.a, pair.bias])
    assert end["weight"] == pytest.approx(0.7 * np.linalg.norm(whole), rel=1e-5)
    assert result.epoch == 1


@pytest.fixture(scope="module")
def erased(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("leace") / "run"
    main(["run", "--statistics", str(run), "--out", str(out), "--optimizer", "leace"])
    return out


def test_a_run_erases_on_every_merger(erased, folder):
    metrics = read(erased / "metrics.json")
    assert metrics["optimizer"] == "leace"
    assert (metrics["adapter"]["rank"], metrics["adapter"]["alpha"]) == (1, 1.0)
    assert len(metrics["adapter"]["targets"]) == 3
    assert metrics["search"]["fall"] > 0
    adapter = porting.load_peft(erased / "adapter")
    extracted = read_statistics(erased).extracted()
    for split in splits(extracted, extracted.train, adapter).values():
        gap, was = (
            x[split.is_forget].mean(axis=0) - x[~split.is_forget].mean(axis=0)
            for x in (split.after, split.before)
        )
        # The means become one: that is what no linear probe can read.
        assert np.linalg.norm(gap) < 1e-4 * np.linalg.norm(was)


def test_its_targets_are_made_once_and_its_rows_are_those_of_others(run, tmp_path, monkeypatch):
    made = []

    def counting(kind, *rest):
        made.append(kind)
        return neutral_target(kind, *rest)

    monkeypatch.setattr("jax_unlearn.objective.problem.neutral_target", counting)
    out = tmp_path / "run"
    main(["run", "--statistics", str(run), "--out", str(out), "--optimizer", "leace"])
    rows = read(out / "metrics.json")["rows"]
    assert len(made) == len(rows) == 3
    assert rows == read(run / "metrics.json")["rows"]


def test_the_bias_goes_to_the_merged_checkpoint_too(erased, folder, tmp_path):
    main(["export", str(erased), "--format", "merged", "--out", str(tmp_path / "merged")])
    before = load_file(folder / "checkpoint" / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert {key.rpartition(".")[2] for key in changed} == {"weight", "bias"}
    assert len(changed) == 6
    tower = porting.load_vision_tower(folder / "checkpoint")
    merged = porting.load_vision_tower(tmp_path / "merged")
    adapter, pixels = porting.load_peft(erased / "adapter"), tiny.images()
    ours = tower(pixels, tiny.GRID, adapter=adapter)
    np.testing.assert_allclose(
        merged(pixels, tiny.GRID).pooler_output, ours.pooler_output, atol=1e-4
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--linears", "linear_fc1"], "--optimizer leace: .*leave out --linears"),
        (["--auto"], "--auto: has no effect here: .* this run's is leace"),
        (["--until-forgotten", "0.7"], "--until-forgotten: has no effect here: .* is leace"),
        (["--rank", "2"], "--rank: has no effect here: .* is leace"),
        (["--lambda-forget", "2"], "--lambda-forget: has no effect here: .* is leace"),
        (["--target", "shift"], "--target: has no effect here: .* is leace"),
        (["--select", "held_out"], "--select: has no effect here: .* is leace"),
    ],
)
def test_what_leace_cannot_do_is_refused(folder, tmp_path, capsys, flags, expected):
    with pytest.raises(SystemExit) as caught:
        main([*arguments(folder, tmp_path / "run", **LEACE), *flags])
    assert caught.value.code == 2
    assert re.search(expected, capsys.readouterr().err.strip().splitlines()[-1])
    assert not (tmp_path / "run").exists()
