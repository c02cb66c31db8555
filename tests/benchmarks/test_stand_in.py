"""The benchmarks of the target stand_in: its drawings, and its size table."""

import json

import numpy as np
import pytest

from benchmarks.forgetting import stand_in_several
from benchmarks.shipped.qwen3_vl.generated import RGB, counts_for, drawings, write_drawings
from benchmarks.shipped.qwen3_vl.images import COLORS, DRAWINGS, SIDE
from benchmarks.speed import stand_in_size


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
