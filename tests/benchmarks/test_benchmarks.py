"""The benchmarks of training at toy sizes: they run, what they compare agrees, tables are made."""

import json
from argparse import Namespace

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import write_docs
from benchmarks.harness import save
from benchmarks.scale import accelerator
from benchmarks.speed import rows, sweep, where_to_solve
from benchmarks.speed.synthetic_rows import FORGET, Source
from jax_unlearn.solvers.config import SolverConfig
from tests import problems


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


@pytest.mark.slow
def test_scaling(tmp_path):
    out = tmp_path / "scaling.json"
    sizes = "--d-in 24 --e 16 --cases 200x20 400x40 --steps 2 --rounds 2"
    rows.main([*sizes.split(), "--out", str(out)])
    for row in json.loads(out.read_text())["rows"]:
        assert row["gather"]["kept"] == {"forget": 40, "preserve": 24}
        assert row["train"]["peak_mib"] >= row["train"]["before_mib"] > 0
    assert "| 400 | 40 | 40 + 24 |" in block_of("scaling", out)


# A few steps of a tiny problem can take less time than the clock tells.
@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_sweep(tmp_path, monkeypatch):
    settings = sweep.grid().settings()
    assert len(set(settings)) == 256
    problem = problems.problem()
    config = SolverConfig(chunk=2)
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
