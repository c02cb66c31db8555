import errno
import json
import os
import re
import resource
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import check_free


def fill(out_dir, text="new", **options):
    with fresh_directory(out_dir, **options) as fresh:
        (fresh / "metrics.json").write_text(text)
        assert fresh.parent == out_dir.resolve().parent


def fill_and_fail(out_dir, overwrite, error):
    with fresh_directory(out_dir, overwrite) as fresh:
        (fresh / "metrics.json").write_text("half")
        raise error


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_new_directory(tmp_path):
    fill(tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out" / "metrics.json").read_text() == "new"
    assert names(tmp_path / "a" / "b") == ["out"]


def test_rights_are_those_of_any_new_directory(tmp_path):
    (tmp_path / "usual").mkdir()
    fill(tmp_path / "out")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "out")]
    assert modes[0] == modes[1]


def test_nothing_is_seen_before_the_end(tmp_path):
    with fresh_directory(tmp_path / "out"):
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").is_dir()


def test_an_empty_directory_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_an_existing_directory_needs_overwrite(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(UserError, match="pass --overwrite"):
        fill(tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").read_text() == "old"
    (tmp_path / "out" / "history.jsonl").touch()
    fill(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == ["metrics.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_what_was(tmp_path, error, overwrite):
    if overwrite:
        fill(tmp_path / "out", "old")
    before = names(tmp_path)
    with pytest.raises(type(error)):
        fill_and_fail(tmp_path / "out", overwrite, error)
    assert names(tmp_path) == before
    assert not overwrite or (tmp_path / "out" / "metrics.json").read_text() == "old"


def test_a_failed_rename_leaves_what_was(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise RuntimeError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RuntimeError):
        fill(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "metrics.json").read_text() == "old"


def test_somebody_else_was_faster(tmp_path):
    with pytest.raises(UserError, match="out"), fresh_directory(tmp_path / "out"):
        fill(tmp_path / "out", "theirs")
    assert (tmp_path / "out" / "metrics.json").read_text() == "theirs"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_named(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="out: No space left") as caught:
        fill_and_fail(tmp_path / "out", False, full)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


DATA = np.random.default_rng(0).normal(size=2**14)
WRITERS = {
    "bytes": lambda out: (out / "x").write_bytes(DATA.tobytes()),
    "JSON": lambda out: (out / "x").write_text(json.dumps(DATA.tolist())),
    "safetensors": lambda out: save_file({"x": DATA}, out / "x"),
    "NumPy": lambda out: np.save(out / "x.npy", DATA),
    "Pillow": lambda out: Image.fromarray(DATA.view("u1").reshape(256, -1)).save(out / "x.png"),
    "shutil, a tree": lambda out: shutil.copytree(out.parent / "large", out / "x"),
    "shutil, a file": lambda out: shutil.copyfile(out.parent / "large" / "x", out / "x"),
    "a directory inside": lambda out: fill(out / "adapter", DATA.tobytes().hex()),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_system_that_is_full_for_any_writer(tmp_path, writer, overwrite):
    """The answer is that of a limit on the size of files; NumPy does not say which it was."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "x").write_bytes(DATA.tobytes())
    if overwrite:
        fill(tmp_path / "out", "old")
    before = names(tmp_path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        with fresh_directory(tmp_path / "out", overwrite) as fresh:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
            WRITERS[writer](fresh)

    try:
        with pytest.raises(UserError) as caught:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    reason = "No space left on device; make room there"
    if writer != "NumPy":
        reason = r"File too large; raise the limit on the size of files \(ulimit -f\)"
    expected = f"{tmp_path}/out(/x)?: {reason}, or choose another folder"
    assert re.fullmatch(expected, str(caught.value))
    assert names(tmp_path) == before
    assert not overwrite or (tmp_path / "out" / "metrics.json").read_text() == "old"


def test_a_parent_that_refuses_is_named(tmp_path):
    with pytest.raises(UserError, match="/proc"):
        fill(Path("/proc/nowhere/out"))
    (tmp_path / "metrics.json").touch()
    with pytest.raises(UserError, match=r"metrics\.json"):
        fill(tmp_path / "metrics.json" / "out")


def test_our_own_faults_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError), fresh_directory(tmp_path / "out") as fresh:
        (fresh / "nothing").read_text()


def test_a_link_leads_to_its_target(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "real") == ["metrics.json"]


def test_places_that_may_not_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").touch()
    with pytest.raises(UserError, match="a file of that name"):
        check_free(tmp_path / "metrics.json", overwrite=True)
    with pytest.raises(UserError, match="a mount point"):
        check_free("/proc", overwrite=True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for place in (".", tmp_path / "a"):
        with pytest.raises(UserError, match="must stay"):
            check_free(place, overwrite=True)
