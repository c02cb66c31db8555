"""Training again on a run's statistics: the same adapter, without an image or a tower."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import porting
from jax_unlearn.features import extracted, statistics_check
from jax_unlearn.features.statistics_file import FILE
from jax_unlearn.runs import saved_statistics
from jax_unlearn.runs.cli import main
from tests.attack.families import contents_of, write_statistics
from tests.running import arguments, read


def again(run, out, *options):
    main(["run", "--statistics", str(run), "--out", str(out), *options])
    return out


def weights(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def alone(run, folder, tmp_path, monkeypatch):
    """The run, with neither images nor tower in reach."""

    def forbidden(*_, **__):
        raise AssertionError("the tower was loaded")

    monkeypatch.setattr(porting, "load_vision_tower", forbidden)
    for name in ("forget", "preserve"):
        (folder / name).rename(tmp_path / name)
    yield run
    for name in ("forget", "preserve"):
        (tmp_path / name).rename(folder / name)


def test_the_same_settings_give_the_same_adapter(alone, tmp_path):
    out = again(alone, tmp_path / "out")
    assert weights(out) == weights(alone)
    first, second = (read(path / "metrics.json") for path in (alone, out))
    for key in ("objective", "forget", "preserve", "paths", "samples", "rows"):
        assert first[key] == second[key]


def test_given_settings_win_over_the_earlier_runs(run, tmp_path):
    changed = {"rank": 3, "seed": 4, "lambda-forget": 0.7, "target": "matched"}
    options = [part for key, value in changed.items() for part in (f"--{key}", str(value))]
    out = again(run, tmp_path / "out", *options)
    assert weights(out) != weights(run)
    assert porting.load_peft(out / "adapter").rank == 3
    config = read(out / "config.json")
    assert (config["epochs"], config["seed"], config["target"]) == (30, 4, "matched")


def test_a_seed_draws_other_targets_from_the_same_statistics(run, folder, tmp_path):
    """Without a split of its own, a run from the images must come to the same adapter.

    But for rounding: the images come in an order drawn with the seed.
    """
    sides = {
        "forget": folder / "forget",
        "preserve": folder / "preserve",
        "forget_held_out": tmp_path / "forget",
        "preserve_held_out": tmp_path / "preserve",
    }
    for side in ("forget", "preserve"):
        shutil.copytree(folder / side, tmp_path / side)
        for path in filter(Path.is_file, (tmp_path / side).rglob("*")):
            path.write_bytes(path.read_bytes() + b"another image")
    options = sides | {"target": "random", "granularity": "tokens"}
    main(arguments(folder, tmp_path / "first", **options))
    main(arguments(folder, tmp_path / "images", **options, seed=5))
    out = again(tmp_path / "first", tmp_path / "statistics", "--seed", "5")
    found, expected, other = (
        load_file(path / "adapter" / "adapter_model.safetensors")
        for path in (out, tmp_path / "images", tmp_path / "first")
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    assert any(np.abs(other[name] - value).max() > 1e-2 for name, value in expected.items())


def test_such_a_run_stands_alone(run, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(run, first)
    out = again(first, tmp_path / "out", "--epochs", "5")
    shutil.rmtree(first)
    metrics = read(out / "metrics.json")
    main(["evaluate", str(out)])
    assert read(out / "metrics.json")["paths"] == metrics["paths"]
    third = again(out, tmp_path / "third")
    assert weights(third) == weights(out)


def shown(run):
    return (run / "report.html").read_text().count('<img alt="held-out image')


def test_images_are_found_from_any_working_directory(folder, tmp_path, monkeypatch):
    """Also if the run was given relative paths; and no report shows them if that is not wanted."""
    monkeypatch.chdir(folder)
    given = {name: name for name in ("checkpoint", "forget", "preserve")}
    main(arguments(folder, tmp_path / "first", **given, epochs=1))
    monkeypatch.chdir(tmp_path)
    out = again(tmp_path / "first", tmp_path / "out")
    # Held-out images: a fifth of 10 of each of three classes.
    assert shown(tmp_path / "first") == shown(out) == 6
    none = again(tmp_path / "first", tmp_path / "none", "--no-pictures")
    assert shown(none) == 0
    main(["evaluate", str(none)])
    assert shown(none) == 0
    main(["evaluate", str(out)])
    assert shown(out) == 6


def test_held_out_images_are_kept_apart(folder, tmp_path):
    main(arguments(folder, tmp_path / "run", select="held_out", granularity="tokens"))
    out = again(tmp_path / "run", tmp_path / "out")
    assert weights(out) == weights(tmp_path / "run")


def refused(run, tmp_path, capsys, options, expected):
    with pytest.raises(SystemExit) as caught:
        again(run, tmp_path / "out", *options)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(expected, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--granularity", "tokens"], "--granularity: .* was made with another"),
        (["--preset", "faithful"], "--preset: --statistics starts from the earlier run"),
        (["--max-pixels", "100"], "--max-pixels: .* was made with another"),
        (["--select", "held_out"], "--select held_out: .* images to choose by"),
        (["--mesh", "data=1"], "--mesh: has no effect here: no tower is run with --statistics"),
        (["--batch-patches", "512"], "--batch-patches: .* was made with another"),
        (["--sum-on", "device"], "--sum-on: .* was made with another"),
    ],
)
def test_what_needs_the_images_is_refused(run, tmp_path, capsys, options, expected):
    refused(run, tmp_path, capsys, options, expected)


def test_a_path_without_statistics_is_refused(folder, tmp_path, capsys):
    main(arguments(folder, tmp_path / "run", targets="merger"))
    capsys.readouterr()
    expected = "deepstack_merger_list.0.linear_fc2: its rows were not extracted"
    refused(tmp_path / "run", tmp_path, capsys, ["--targets", "all"], expected)


def test_a_broken_file_is_refused(run, tmp_path, capsys):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "statistics.safetensors").write_bytes(b"broken")
    refused(broken, tmp_path, capsys, [], "statistics.safetensors: cannot be read")
    (broken / "statistics.safetensors").unlink()
    refused(broken, tmp_path, capsys, [], "no such file; a run writes it with --save")


@pytest.mark.parametrize(
    ("largest", "value", "said"),
    [
        # Refused as they are read, and, if they were not, before anything is written.
        (extracted.LARGEST, 1e13, "its input is not finite, or beyond 1e+12, for some samples"),
        (np.inf, 1e30, " is not finite, so the features are too large to measure with"),
        (extracted.LARGEST, np.nan, "has values that are not finite"),
        (extracted.LARGEST, 1e30, "has values that are not finite, or beyond 1e+18"),
    ],
)
def test_features_that_overflow_are_one_line(
    run, tmp_path, capsys, monkeypatch, largest, value, said
):
    monkeypatch.setattr(extracted, "LARGEST", largest)
    if largest == np.inf:
        monkeypatch.setattr(statistics_check, "LARGEST", largest)
    other = shutil.copytree(run, tmp_path / "other")
    rewrite(other, "preserve_held_out.merger.linear_fc2.x", lambda x: np.full_like(x, value))
    with pytest.raises(SystemExit) as ended:
        main(["run", "--statistics", str(other), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_weight_of_zeros_is_one_line(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    rewrite(other, "path.merger.weight", lambda weight: weight * 0)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--statistics", str(other), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "merger.linear_fc2: its weight is zero" in line


def rewrite(run, name, change):
    """Change an array of a run's statistics, with a digest that fits."""
    arrays, facts = contents_of(run / FILE)
    write_statistics(run / FILE, arrays | {name: change(arrays[name])}, facts)


def test_the_target_blank_needs_no_image_and_a_run_no_copy_of_its_statistics(alone, tmp_path):
    out = again(alone, tmp_path / "statistics", "--target", "blank", "--save-statistics", "no")
    assert weights(out) != weights(alone)
    assert not (out / "statistics.safetensors").exists()
    main(["evaluate", str(out)])


def test_no_statistics_where_they_are_not_wanted(folder, tmp_path):
    main([*arguments(folder, tmp_path / "run", epochs=1), "--save-statistics", "no"])
    assert not (tmp_path / "run" / "statistics.safetensors").exists()


def test_large_statistics_are_written_on_request(folder, tmp_path, monkeypatch, capsys):
    size = read_size(folder, tmp_path / "small")
    monkeypatch.setattr(saved_statistics, "SMALL", size - 1)
    assert read_size(folder, tmp_path / "large", written=False) == size
    said = "statistics.safetensors was not written, as it has"
    assert said in capsys.readouterr().err
    assert read_size(folder, tmp_path / "asked", "--save-statistics", "yes") == size
    assert said not in capsys.readouterr().err


def read_size(folder, out, *options, written=True):
    main([*arguments(folder, out, epochs=1), *options])
    assert (out / "statistics.safetensors").exists() == written
    found = read(out / "metrics.json")["statistics"]
    assert found["written"] == written
    return found["bytes"]


@pytest.mark.parametrize(
    ("forget", "preserve", "directory", "file"),
    [(0o755, 0o755, 0o755, 0o644), (0o750, 0o755, 0o750, 0o640), (0o755, 0o700, 0o700, 0o600)],
)
def test_nobody_reads_a_run_who_may_not_read_its_images(
    forget, preserve, directory, file, folder, tmp_path
):
    for name, mode in (("forget", forget), ("preserve", preserve)):
        shutil.copytree(folder / name, tmp_path / name)
        (tmp_path / name).chmod(mode)
    old = os.umask(0o022)
    try:
        out, more = tmp_path / "run", {"checkpoint": folder / "checkpoint", "epochs": 1}
        main(arguments(tmp_path, out, **more))
        again(out, tmp_path / "again")
    finally:
        os.umask(old)
    for made in (out, tmp_path / "again"):
        assert made.stat().st_mode & 0o777 == directory
        assert (made / "statistics.safetensors").stat().st_mode & 0o777 == file


def test_statistics_hold_no_rows_of_tokens(folder, tmp_path):
    """Tokens to keep are more than D_in = 128: of them a Gram matrix is left."""
    main(arguments(folder, tmp_path / "run", granularity="tokens", epochs=1))
    rows = read(tmp_path / "run" / "metrics.json")["rows"]
    assert set(rows) == {
        f"{m}.linear_fc2" for m in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
    }
    kept = rows["merger.linear_fc2"]["preserve"]
    original, _, count = kept.removesuffix(" with the same Gram matrix").partition(" rows, by ")
    assert int(count) <= 128 < int(original)
    assert np.isfinite(read(tmp_path / "run" / "metrics.json")["objective"]["total"])
