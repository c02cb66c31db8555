"""The speed benchmarks of training at toy sizes: what they compare is the same, and is timed."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks.speed import clip_names, jit_vs_eager, time_to_objective
from benchmarks.speed.contestants import (
    ALGEBRA,
    COMPILED,
    COMPILED_ALGEBRA,
    CONFIG,
    NAME,
    PUBLISHED,
    SCAN,
    STATISTICS,
    algebra_loop,
    problem_of,
    published_loop,
    statistics_loop,
    statistics_of,
)
from benchmarks.speed.first_passage import Lap, Tuning, first_passages
from benchmarks.speed.float64_objective import Exact
from benchmarks.speed.race import ADAM, CLOSED, GAPS
from benchmarks.speed.streamed_rows import gather
from benchmarks.speed.synthetic_rows import Source
from benchmarks.speed.torch_algebra import Constants, whole_algebra
from benchmarks.speed.torch_loop import Loop, Rows, published
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.loss import loss
from jax_unlearn.solvers.adam.loop import train

# The size of a run that takes seconds, most of them JAX's compiler.
TOY = "--d-in 24 --e 16 --forget 60 --preserve 200 --tokens 5 --epochs 600 --rounds 2 --starts 2"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of PyTorch that wait for a busy core would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(Loop, "threads", 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows():
    """(Arrays, the problem on rows, the problem on statistics) of one small Linear."""
    arrays = Source(24, 16, tokens=5).linear_arrays(200, 300)
    problem = problem_of(arrays)
    return arrays, problem, statistics_of(problem)


def drawn(b_size, alpha=5.0):
    """An adapter far from both zero and the target, if b_size is not zero."""
    random = np.random.default_rng(1)
    a, b = random.normal(size=(5, 24)), b_size * random.normal(size=(16, 5))
    pair = LoraPair(a.astype(np.float32) / 10, b.astype(np.float32) / 10)
    return LoraAdapter({NAME: pair}, alpha=alpha, rank=5)


def backward_of(backward, adapter):
    """(Loss, gradient by A, gradient by B) in PyTorch."""
    (pair,) = adapter.pairs.values()
    a, b = (torch.tensor(x, requires_grad=True) for x in (pair.a, pair.b))
    total = backward(a, b).item()
    return total, a.grad.numpy(), b.grad.numpy()


def close(found, expected):
    """To 1e-5 of the largest entry of each array."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("b_size", "alpha"), [(1.0, 5.0), (1.0, 1.0), (1.0, -2.0), (0.0, 5.0)], ids=str
)
def test_the_whole_algebra_has_the_published_loss_and_gradient(rows, b_size, alpha):
    arrays, problem, statistics = rows
    adapter = drawn(b_size, alpha)
    scale = adapter.scale
    expected = backward_of(published(Rows.of(*arrays), scale), adapter)
    assert expected[0] > 0
    assert np.abs(expected[2]).max() > 0
    constants = Constants.of_rows(*arrays), Constants.of_problem(statistics[NAME])
    assert len(constants[1].preserve) < len(constants[0].preserve)
    for sides in constants:
        close(backward_of(whole_algebra(sides, scale), adapter), expected)
    both = jax.jit(jax.value_and_grad(lambda *args: loss(*args)[0]))
    for part in (problem, statistics):
        total, gradient = both(adapter, part, CONFIG.loss_weights())
        close((total, gradient.pairs[NAME].a, gradient.pairs[NAME].b), expected)


def test_pytorch_rows_and_streamed_statistics_train_alike(rows):
    arrays, problem, statistics = rows
    config = replace(CONFIG, epochs=4, select="last")
    result, exact = train(problem, config), Exact(arrays)
    np.testing.assert_allclose(exact(result.adapter), result.history[-1]["total"], rtol=1e-5)
    init = config.init(problem)
    totals = [row["total"] for row in result.history]
    for loop in (
        published_loop(arrays, init),
        algebra_loop(arrays, init),
        statistics_loop(statistics, init),
    ):
        loop.begin()
        loop.advance(config.epochs)
        assert loop.objective() == loop.losses[-1]
        np.testing.assert_allclose(loop.losses, totals, rtol=1e-5)
        np.testing.assert_allclose(exact(loop.best()), totals[-1], rtol=1e-5)
    _, part = gather(Source(24, 16, tokens=5), 200, 300)
    assert len(part.forget) <= 24 + 16
    for other in ({NAME: part}, statistics):
        totals = [loss(result.adapter, p, CONFIG.loss_weights())[0] for p in (problem, other)]
        np.testing.assert_allclose(*totals, rtol=1e-5)


def test_jit_vs_eager(tmp_path):
    out = tmp_path / "jit.json"
    # torch.compile takes a C++ compiler and half a minute.
    variants = [name for name in jit_vs_eager.VARIANTS if name not in (COMPILED_ALGEBRA, COMPILED)]
    sizes = "--sizes 24x16 --rows 200 400 --rounds 3 --seconds 0 --steps 2"
    jit_vs_eager.main([*sizes.split(), "--out", str(out), "--variants", *variants])
    results = json.loads(out.read_text())
    assert [case["kept"] for case in results["cases"]] == [
        {"forget": 20, "preserve": 24},
        {"forget": 40, "preserve": 24},
    ]
    for case in results["cases"]:
        assert [*case["variants"]] == variants
        assert variants[0] == ALGEBRA
        assert case["spread"] < jit_vs_eager.TOLERANCE
        factors = {name: found["ratios"] for name, found in case["factors"].items()}
        assert [*factors] == ["algebra", "statistics", "compiler", "together"]
        steps = {name: case["variants"][name]["all_seconds"] for name in (PUBLISHED, SCAN)}
        np.testing.assert_allclose(factors["together"], np.divide(steps[PUBLISHED], steps[SCAN]))
        parts = [factors[name] for name in ("algebra", "statistics", "compiler")]
        np.testing.assert_allclose(np.prod(parts, axis=0), factors["together"])
        assert [name for name in variants if "compile" in case["variants"][name]] == variants[3:]
    text = jit_vs_eager.table(results)
    assert text.startswith(f"*{results['machine']['date']}, ")
    assert "python -m benchmarks.speed.jit_vs_eager" in text.splitlines()[0]
    assert "| rows, D_in → E: times as fast, by | algebra | statistics | compiler |" in text
    assert "| 400, 24 → 16 |" in text
    assert out.with_suffix(".png").stat().st_size > 0


def test_factors_are_medians_of_the_rounds():
    seconds = {PUBLISHED: [8.0, 8.0, 9.0], ALGEBRA: [2.0, 1.0, 1.0]}
    found = jit_vs_eager.factors(seconds)
    assert found == {"algebra": {"ratio": 8.0, "ratios": [4.0, 8.0, 9.0]}}


def test_what_cannot_run_is_told():
    class Broken:
        def begin(self):
            raise RuntimeError("no compiler")

    first, failed = jit_vs_eager.first_calls({COMPILED: Broken()}, 1)
    assert not first
    assert failed == {COMPILED: "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError):
        jit_vs_eager.first_calls({SCAN: Broken()}, 1)


def test_first_passages_of_a_trajectory():
    objectives = [9.0, 5.0, 2.0, 3.0, np.nan, 1.0, 0.5]
    looks = (Lap(10.0 * epoch, epoch, value) for epoch, value in enumerate(objectives))
    adapters = iter("abcdefg")
    goals = {"far": 5.0, "near": 2.5, "nearest": 1.0}
    found = first_passages(looks, goals, lambda: next(adapters))
    assert {name: passage.lap.seconds for name, passage in found.items()} == {
        "far": 10.0,
        "near": 20.0,
        "nearest": 50.0,
    }
    assert [passage.adapter for passage in found.values()] == ["a", "b", "c"]
    # Nothing after the last goal is computed.
    assert next(looks).objective == 0.5
    one = [Lap(0.0, 0, 9.0), Lap(1.0, 1, 1.0)]
    assert first_passages(one, {"near": 2.0, "never": 0.1})["never"] is None
    assert first_passages(one, goals)["far"].lap == first_passages(one, goals)["near"].lap


def test_each_goal_has_the_rate_that_is_there_first():
    histories = {
        0.1: np.array([9.0, 3.0, 4.0, 3.0]),
        0.01: np.array([9.0, 5.0, 2.0, 1.5]),
        0.001: np.array([9.0, 8.0, 7.0]),
    }
    tuning = Tuning(histories, {}, 1.0)
    goals = {"far": 5.0, "near": 3.0, "nearest": 2.0, "never": 1.0}
    # The first of two that are there in the same step.
    expected = {"far": 0.1, "near": 0.1, "nearest": 0.01, "never": 0.01}
    assert tuning.chosen(goals) == expected
    assert tuning.epochs(goals)[0.1] == {"far": 1, "near": 1, "nearest": None, "never": None}


@pytest.mark.parametrize("epochs", [4, 0], ids=["extrapolated", "whole"])
def test_time_to_objective(tmp_path, epochs):
    out = tmp_path / "objective.json"
    flags = [*TOY.split(), "--published-epochs", str(epochs), "--out", str(out)]
    time_to_objective.main(flags)
    results = json.loads(out.read_text())
    found = results["contestants"]
    assert [*found] == [ALGEBRA, STATISTICS, PUBLISHED, ADAM, CLOSED]
    best = results["best"]
    assert best["value"] == min(best["candidates"].values())
    assert len(best["candidates"]) == 1 + len(time_to_objective.RATES)
    goals = [results["goals"][gap] / best["value"] - 1 for gap in GAPS]
    np.testing.assert_allclose(goals, [0.01, 0.001, 0.0001], rtol=1e-6)
    for name, one in found.items():
        assert [*one["seconds"]] == [*GAPS]
        assert all(one["seconds"][gap] > 0 for gap in GAPS)
        assert one["preparation"] > 0
        assert one["reading_error"] < 1e-5
        assert one["ratio"]["+1 %"]["ratio"] > 0
        assert (one["learning_rates"] is None) == (name == CLOSED)
    chosen = results["tuning"]["epochs"]
    for gap, rate in results["tuning"]["chosen"].items():
        # The same trajectory but for rounding, and the looks of ours.
        assert abs(found[ALGEBRA]["epochs"][gap] - chosen[str(rate)][gap]) <= 5
        assert 0 <= found[ADAM]["epochs"][gap] - chosen[str(rate)][gap] < 10
    assert found[PUBLISHED]["extrapolated"] == bool(epochs)
    text = time_to_objective.table(results)
    assert text.startswith(f"*{results['machine']['date']}, ")
    assert "python -m benchmarks.speed.time_to_objective" in text.splitlines()[0]
    assert ("(extrapolated from 4 epochs a round" in text) == bool(epochs)
    assert out.with_suffix(".png").stat().st_size > 0


def test_a_goal_that_is_not_reached_is_shown_so(tmp_path):
    out = tmp_path / "objective.json"
    short = TOY.replace("--epochs 600", "--epochs 20").split()
    time_to_objective.main([*short, "--rounds", "1", "--out", str(out)])
    results = json.loads(out.read_text())
    for name, one in results["contestants"].items():
        reached = name == CLOSED
        assert (one["seconds"]["+0.01 %"] is not None) == reached
        assert one["ratio"]["+0.01 %"] is None
    lines = time_to_objective.table(results).splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {PUBLISHED}"))
    assert "| not reached |" in line


def test_names_of_clip_are_those_of_transformers(tmp_path, capsys):
    clip_names.make_model(tmp_path, layers=1)
    texts = clip_names.prompts(40)
    assert len(set(texts)) == 80
    for side in clip_names.SIDES:
        clip_names.WORK[side](tmp_path, texts)
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["seconds"] > 0
    theirs, ours = (np.load(tmp_path / f"{side}.npy") for side in clip_names.SIDES)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
