"""The benchmarks of training at toy sizes: they run, what they compare agrees, tables are made."""

import json
from argparse import Namespace

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import write_docs
from benchmarks.harness import save
from benchmarks.scale import accelerator
from benchmarks.speed import jit_vs_eager, rows, sweep, time_to_objective, where_to_solve
from benchmarks.speed.float64_objective import Exact
from benchmarks.speed.streamed_rows import gather
from benchmarks.speed.synthetic_rows import FORGET, Source
from benchmarks.speed.torch_loop import Loop, Rows, published
from jax_unlearn.objective.linear import compress, linear_problem
from jax_unlearn.objective.loss import loss
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.config import TrainConfig
from tests import problems

NAME = "linear_fc2"
CONFIG = TrainConfig(epochs=4, select="last")


def block_of(name, out):
    """The block of docs/results/speed.md, from the file that a benchmark has written."""
    assert out.with_suffix(".png").stat().st_size > 0
    (block,) = (b for b in write_docs.BLOCKS if (b.page, b.name) == (write_docs.SPEED, name))
    return block.table(json.loads(out.read_text()))


def test_rows_do_not_depend_on_how_many_are_asked_for():
    source = Source(12, 8, tokens=1000)
    images, blocks = zip(*source.blocks(FORGET, 9000), strict=True)
    assert [len(np.unique(image)) for image in images] == [4, 4, 1]
    np.testing.assert_array_equal(np.concatenate(blocks)[:4000], source.rows(FORGET, 4000))
    np.testing.assert_array_equal(source.unit_vectors(9000)[:4], source.unit_vectors(4000))


def test_pytorch_rows_and_streamed_statistics_train_alike():
    source = Source(24, 16, tokens=5)
    arrays = source.linear_arrays(200, 300)
    problem = {NAME: linear_problem(*arrays)}
    result, exact = train(problem, CONFIG), Exact(arrays)
    np.testing.assert_allclose(exact(result.adapter), result.history[-1]["total"], rtol=1e-5)
    loop = Loop(published(Rows.of(*arrays), 1.0), CONFIG.init(problem), CONFIG.learning_rate)
    loop.advance(CONFIG.epochs)
    np.testing.assert_allclose(exact(loop.adapter()), exact(result.adapter), rtol=1e-5)
    _, part = gather(source, 200, 300)
    assert len(part.forget) <= 24 + 16
    for other in ({NAME: part}, compress(problem)):
        totals = [loss(result.adapter, p, CONFIG.loss_weights())[0] for p in (problem, other)]
        np.testing.assert_allclose(*totals, rtol=1e-5)


def test_jit_vs_eager(tmp_path):
    out = tmp_path / "jit.json"
    # torch.compile takes a C++ compiler and half a minute.
    variants = [name for name in jit_vs_eager.VARIANTS if name != "torch.compile"]
    sizes = "--sizes 24x16 --rows 200 400 --in-memory 300 --rounds 1 --seconds 0 --steps 2"
    jit_vs_eager.main([*sizes.split(), "--out", str(out), "--variants", *variants])
    first, second = json.loads(out.read_text())["cases"]
    assert [*first["variants"]] == variants
    assert first["spread"] < jit_vs_eager.TOLERANCE
    assert [*second["variants"]] == [jit_vs_eager.STATISTICS]
    assert "24 → 16" in block_of("jit", out)


def test_what_cannot_run_is_told():
    class Broken:
        def begin(self):
            raise RuntimeError("no compiler")

    first, failed = jit_vs_eager.first_calls({"torch.compile": Broken()}, 1)
    assert not first
    assert failed == {"torch.compile": "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError):
        jit_vs_eager.first_calls({"JAX scan": Broken()}, 1)


def test_time_to_objective(tmp_path):
    out = tmp_path / "objective.json"
    sizes = "--d-in 24 --e 16 --forget 60 --preserve 200 --tokens 5 --epochs 40 --torch-epochs 3"
    time_to_objective.main([*sizes.split(), "--rounds", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["torch"]["extrapolated"]
    for side in ("closed_form", "adam"):
        assert found[side]["reached"]
        assert abs(found[side]["reading_error"]) < 1e-5
        assert found[side]["ratio"] > 0
    assert "40 epochs (from 3 of them" in block_of("objective", out)


def test_scaling(tmp_path):
    out = tmp_path / "scaling.json"
    sizes = "--d-in 24 --e 16 --cases 200x20 400x40 --steps 2 --rounds 2"
    rows.main([*sizes.split(), "--out", str(out)])
    for row in json.loads(out.read_text())["rows"]:
        assert row["gather"]["kept"] == {"forget": 40, "preserve": 24}
        assert row["train"]["peak_mib"] >= row["train"]["before_mib"] > 0
    assert "| 400 | 40 | 40 + 24 |" in block_of("scaling", out)


def test_sweep(tmp_path, monkeypatch):
    settings = sweep.grid().settings()
    assert len(set(settings)) == 256
    problem = problems.problem()
    config = TrainConfig(chunk=2)
    found = sweep.compare(lambda *_: problem, settings[:3], config, epochs=4, rounds=2)
    assert found["rows"] == {"merger.linear_fc2": [30, 50]}
    found |= {"machine": sweep.machine(), "concept": "astronaut"}
    monkeypatch.setattr("jax_unlearn.solvers.closed_form.subspace.FACTORED", 0)
    products = sweep.lambdas().settings()
    assert len(set(products)) == 256
    solved = sweep.closed_form(problem, products[:5], checked=2, rounds=1)
    assert abs(solved["excess"]) <= 1e-6
    found["closed_form"] = solved | {"d_in": 16, "e": 8, "forget": 30, "preserve": 50}
    save(tmp_path / "sweep.json", found, sweep.plot(found))
    block = block_of("sweep", tmp_path / "sweep.json")
    assert "3 settings at once" in block
    assert "5 settings, `solve_all`" in block


def test_where_to_solve(tmp_path):
    out = tmp_path / "place.json"
    sizes = "--d-in 24 --e 16 --rows 50 --rounds 1"
    where_to_solve.main([*sizes.split(), "--out", str(out)])
    sides = [where_to_solve.HOST, where_to_solve.DEVICE, where_to_solve.SINGLE]
    for part in json.loads(out.read_text())["parts"].values():
        assert [*part] == sides
        assert part[where_to_solve.HOST]["ratio"] == 1
    assert "50 rows of 24 → 16" in block_of("place", out)


def test_what_of_an_accelerator_can_be_measured_without_one(monkeypatch):
    monkeypatch.setattr(accelerator, "WIDTHS", (16,))
    monkeypatch.setattr(accelerator, "PATCHES", 4096)
    (row,) = accelerator.statistics(Namespace(rounds=2))
    assert 0 < row["relative_error"] < 1e-6
    machine = {"accelerator": "none", "versions": {"jax": "x"}, "date": "today"}
    text = accelerator.table({"statistics": {"machine": machine, "rows": [row]}})
    assert "1,024 rows of 16 were added up" in text
    assert text.startswith("*today, none, jax x;")
