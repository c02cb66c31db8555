"""What a killed process left beside an output is removed by the next, what is at work is not."""

import os
import signal
import subprocess
import sys

import pytest

from jax_unlearn.runtime.atomic_files import fresh_directory, fresh_file, replace_files
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.leftovers import remove_leftovers

# Fills half of the directory, or is in the middle of replacing it, and waits.
PROGRAM = """
import sys, time
from pathlib import Path
from jax_unlearn.runtime.atomic_files import fresh_directory, fresh_file, replace_files
out, replacing = Path(sys.argv[1]), sys.argv[2] == "replacing"
def wait(*_):
    print("ready", flush=True)
    time.sleep(300)
if replacing:
    rename = Path.rename
    Path.rename = lambda path, to: wait() if path.name.endswith(".partial") else rename(path, to)
with fresh_directory(out, overwrite=True) as fresh:
    (fresh / "metrics.json").write_text("new")
    if not replacing:
        wait()
"""

# Has written one of two files, and waits.
REPLACING = """
import sys, time
from pathlib import Path
from jax_unlearn.runtime.atomic_files import replace_files
def wait(*_):
    print("ready", flush=True)
    time.sleep(300)
Path.replace = wait
replace_files(Path(sys.argv[1]), {"metrics.json": "half"})
"""


@pytest.fixture
def at_work(tmp_path):
    """Starts a process that writes to `out`, and waits until it is in the middle of that."""
    started = []

    def start(when):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), when]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def write(out, text, overwrite=True):
    with fresh_directory(out, overwrite) as fresh:
        (fresh / "metrics.json").write_text(text)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_killed_process_leaves_nothing_for_long(tmp_path, at_work):
    out, process = tmp_path / "out", at_work("writing")
    (partial,) = names(tmp_path)
    assert partial.endswith(".partial")
    write(out, "ours")
    assert names(tmp_path) == [partial, "out"], "it is still at work"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    remove_leftovers(out)
    assert names(tmp_path) == ["out"]
    assert (out / "metrics.json").read_text() == "ours"


def test_what_was_being_replaced_comes_back(tmp_path, at_work):
    out = tmp_path / "out"
    write(out, "old")
    process = at_work("replacing")
    assert not out.exists()
    remove_leftovers(out)
    assert not out.exists(), "it is still at work"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="pass --overwrite"):
        write(out, "new", overwrite=False)
    assert (out / "metrics.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_killed_process_leaves_no_file(tmp_path):
    """As `evaluate` replaces the files of a run."""
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "mine").write_text("mine")
    strangers = {".metrics.json.partial", ".other.0123abcd.partial", ".metrics.json.0123abcd.old"}
    for name in strangers:
        (tmp_path / name).touch()
    (tmp_path / ".metrics.json.11111111.partial").symlink_to(tmp_path / "mine")
    process = subprocess.Popen(
        [sys.executable, "-c", REPLACING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        kept = strangers | {".metrics.json.11111111.partial", "metrics.json", "mine"}
        (partial,) = set(names(tmp_path)) - kept
        replace_files(tmp_path, {"metrics.json": "new"})
        assert partial in names(tmp_path), "it is still at work"
        process.kill()
        process.wait()
    replace_files(tmp_path, {"metrics.json": "newer"})
    assert set(names(tmp_path)) == kept
    assert (tmp_path / "metrics.json").read_text() == "newer"
    (tmp_path / ".metrics.json.22222222.partial").touch()
    with fresh_file(tmp_path / "metrics.json", overwrite=True) as fresh:
        fresh.write_text("newest")
    assert set(names(tmp_path)) == kept


def test_only_what_has_our_names_is_removed(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "mine").mkdir()
    others = {".out.partial", ".out.0123abcd.bak", ".b.0123abcd.partial", ".out.0123ABCD.partial"}
    for name in (*others, ".out.0123abcd.partial", ".out.00000000.old"):
        (tmp_path / name / "x").mkdir(parents=True)
    (tmp_path / ".out.11111111.partial").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.22222222.partial").touch()
    write(tmp_path / "out", "new")
    kept = {".out.11111111.partial", ".out.22222222.partial", "mine"}
    assert set(names(tmp_path)) == kept | others | {"out"}
