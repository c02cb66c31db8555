"""The benchmarks of the target stand_in: its drawings, and its size table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.forgetting import stand_in_bent, stand_in_several
from benchmarks.shipped.qwen3_vl.generated import RGB, counts_for, drawings, write_drawings
from benchmarks.shipped.qwen3_vl.images import COLORS, DRAWINGS, SIDE
from benchmarks.speed import solver_blas, stand_in_size
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.merger import LAST
from jax_unlearn.solvers import stand_in


@pytest.mark.parametrize("name", ["red triangle", "teal circle", "gray rectangle"])
def test_a_drawing_is_one_shape_of_its_colour_on_a_pale_page(name):
    color, shape = name.split()
    for _, image in zip(range(5), drawings(name, "train"), strict=False):
        pixels = np.asarray(image).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        inside = (np.abs(pixels - RGB[color]).sum(axis=-1) < 30).astype(int)
        rows, columns = inside.sum(axis=1), inside.sum(axis=0)
        height, width = (np.count_nonzero(counts) for counts in (rows, columns))
        assert pixels[0, 0].min() >= 230
        # The share of its box that a shape fills.
        filled = {"triangle": 1 / 2, "circle": np.pi / 4, "rectangle": 1.0}[shape]
        assert inside.sum() / (height * width) == pytest.approx(filled, abs=0.13)


def test_splits_and_seeds_share_no_drawing(tmp_path):
    shown = {
        image.tobytes()
        for split in ("train", "test")
        for seed in (0, 1)
        for _, image in zip(range(4), drawings("red circle", split, seed), strict=False)
    }
    assert len(shown) == 16
    write_drawings(tmp_path, {"train": {"red circle": 3}})
    assert len(list((tmp_path / "train" / "red circle").iterdir())) == 3


def test_a_concept_has_its_drawings_shared_by_its_classes():
    counts = counts_for("triangle", 600, 20)
    assert set(counts) == set(DRAWINGS)
    assert sum(n for name, n in counts.items() if "triangle" in name) == 75 * len(COLORS)
    assert counts["red circle"] == 20
    assert counts_for("red triangle", 600, 20)["red triangle"] == 600
    with pytest.raises(ValueError, match="'cat': must be a shape"):
        counts_for("cat", 1, 1)


def test_the_table_of_the_size(tmp_path, capsys):
    out = tmp_path / "size.json"
    sizes = ["--d-in", "40", "--e", "32", "--preserve", "200", "--forget", "20"]
    stand_in_size.main([*sizes, "--out", str(out)])
    results = json.loads(out.read_text())
    assert results["distance"]["after"] < results["distance"]["before"]
    table = stand_in_size.table(results)
    assert "40 → 32: 20 images to forget, as many of the stand-in, 200 to keep" in table
    assert "| fit, 12 rounds |" in table


def test_the_solvers_operations_against_a_product(tmp_path, monkeypatch):
    out = tmp_path / "blas.json"
    monkeypatch.setattr(stand_in, "COMPONENTS", 8)
    sizes = "--d-in 40 --e 32 --preserve 200 --forget 20 --limit 50 --rounds 2"
    solver_blas.main([*sizes.split(), "--out", str(out)])
    results = json.loads(out.read_text())
    assert results["limit"]["operations"] == 2 * 50**3
    parts = results["parts"]
    assert parts["near: Gram matrix"]["operations"] == 200 * 40**2
    assert parts["stand_in: solution"]["operations"] == 2 * 40**2 * 32
    # Its solution, image means, tokens and transports of 8 components.
    means = 4 * 20 * 40 * 32 + 4 * 20 * 32 * 8 + 3 * 20 * 8**2
    tokens = 2 * 40**2 * 32 + 6 * 40 * 32 * 8 + 4 * 40 * 8**2
    counted = 2 * 40**2 * 32 + means + tokens + 22 * 8**3
    assert parts["stand_in: round"]["operations"] == counted
    one = parts["near: factor"]
    limit = [2 * 50**3 / s for s in results["limit"]["all_seconds"]]
    shares = [40**3 / 3 / s / rate for s, rate in zip(one["all_seconds"], limit, strict=True)]
    assert one["ratios"] == pytest.approx(shares)
    table = solver_blas.table(results)
    assert "40 → 32, 200 images to keep and 20 to forget" in table
    assert table.count("%** (") == len(parts)


def test_both_shapes_are_drawn_anew_in_every_colour(tmp_path):
    stand_in_several.draw(tmp_path, stand_in_several.Options(train=16, held_out=8), seed=0)
    train = tmp_path / "train"
    assert (
        len(list(train.rglob("*figure/*.png"))) == len(list(train.rglob("*triangle/*.png"))) == 16
    )
    both = {path.stem.split("-")[0] for path in (train / "red figure").iterdir()}
    assert both == {"circle", "rectangle"}
    shown = [path.read_bytes() for path in train.rglob("*-*.png")]
    assert len({*shown}) == len(shown) == 64


def test_a_merger_with_a_change_of_both_linears():
    """That of the last Linear is the adapter's; that of the first is before the GELU."""
    draw = np.random.default_rng(0).normal
    linears = tuple((draw(size=shape), draw(size=shape[0])) for shape in ((6, 5), (4, 6)))
    merger = stand_in_bent.Merger(jax.tree.map(jnp.asarray, linears), {})
    x, pair = draw(size=(3, 2, 5)), LoraPair(draw(size=(2, 6)), draw(size=(4, 2)), draw(size=4))
    adapter = LoraAdapter({f"merger.{LAST}": pair}, alpha=4.0, rank=2)
    start = stand_in_bent.start_of(adapter, "merger", merger, seed=0)
    hidden = torch.nn.functional.gelu(torch.tensor(x @ linears[0][0].T + linears[0][1])).numpy()
    change = hidden @ (2.0 * pair.b @ pair.a).T + pair.bias
    found = merger.output(start, jnp.asarray(x)) - merger.output(None, jnp.asarray(x))
    np.testing.assert_allclose(found, change, rtol=1e-4, atol=1e-4)
    moved = merger.output(start | {"c1": jnp.ones(6)}, jnp.asarray(x))
    shifted = torch.nn.functional.gelu(torch.tensor(x @ linears[0][0].T + linears[0][1] + 1))
    expected = shifted.numpy() @ (linears[1][0] + 2.0 * pair.b @ pair.a).T
    np.testing.assert_allclose(moved, expected + linears[1][1] + pair.bias, rtol=1e-4, atol=1e-4)
