"""Compiled programs are kept by commands, where nobody else can write, and not by an import."""

import os
import subprocess
import sys

import jax
import pytest

from jax_unlearn.runtime import compilation_cache
from jax_unlearn.runtime.compilation_cache import ENABLED, FOLDER, compiled_programs_kept
from tests import warm
from tests.running import CLOSED_FORM, arguments

DIRECTORY = "jax_compilation_cache_dir"
PROGRAM = """
import jax, sys
import jax_unlearn
from jax_unlearn import solve
from jax_unlearn.runtime import compilation_cache
assert jax.config.jax_compilation_cache_dir is None
compilation_cache.SHORTEST = 0.0
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
x = jax.numpy.ones((4, 4))
with compilation_cache.compiled_programs_kept(print):
    jax.jit(lambda x: x @ x + 3)(x)
assert jax.config.jax_compilation_cache_dir is None
# The process goes on as it was.
jax.jit(lambda x: x @ x + 4)(x)
print(sum("cache_hits" in name for name in hits))
"""
# A command that prints, at the end, how many programs it has compiled or loaded.
COUNTED = """
import sys
import jax.monitoring
programs = []
def listen(event, seconds, **_):
    programs.extend([event] * (event == "/jax/core/compile/backend_compile_duration"))
jax.monitoring.register_event_duration_secs_listener(listen)
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
print(len(programs))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of the user's own, in which none has been made."""
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv(ENABLED, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update(DIRECTORY, None)
    yield compilation_cache.user_folder()
    jax.config.update(DIRECTORY, before)


def refused():
    said = []
    with compiled_programs_kept(said.append):
        assert jax.config.jax_compilation_cache_dir is None
    return said


def test_a_run_compiles_twelve_programs_at_most(folder, tmp_path):
    """Of all kinds, also those of a few operations."""
    done = warm.run(["-c", COUNTED, *arguments(folder, tmp_path / "run", **CLOSED_FORM)])
    assert done.returncode == 0, done.stderr
    assert 4 < int(done.stdout.splitlines()[-1]) <= 12


def test_the_next_process_loads_what_one_has_compiled(home):
    def hits():
        return subprocess.check_output([sys.executable, "-c", PROGRAM], text=True, timeout=300)

    assert int(hits()) == 0
    assert home.stat().st_mode & 0o777 == 0o700
    entries = len(list(home.glob("*-cache")))
    assert int(hits()) == entries > 0


@pytest.mark.parametrize("name", [FOLDER, ENABLED])
def test_a_user_can_choose_another_folder_or_none(home, monkeypatch, name, tmp_path):
    monkeypatch.setenv(name, "false" if name == ENABLED else str(tmp_path / "other"))
    assert refused() == []
    assert not home.exists()


def test_a_folder_that_cannot_be_used_is_named(home, monkeypatch, tmp_path):
    for one in (home.parents[1], home.parent, home):
        one.mkdir(mode=0o700)
    home.chmod(0o770)
    (line,) = refused()
    assert str(home) in line
    assert f"others may write {home}" in line
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (line,) = refused()
    assert "File exists" in line
    assert FOLDER in line


def test_who_may_write_a_folder_above_could_exchange_it(home):
    for one in (home.parents[1], home.parent, home):
        one.mkdir(mode=0o700)
    home.parent.chmod(0o777)
    (line,) = refused()
    assert f"others may write {home.parent}; " in line


def test_no_folder_is_made_where_no_home_is_known(monkeypatch, home, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    (line,) = refused()
    assert "no home directory is known" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_program_has_chosen_stays(home, tmp_path):
    jax.config.update(DIRECTORY, str(tmp_path / "own"))
    with compiled_programs_kept(print):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not home.exists()


def test_half_an_entry_of_a_killed_process_is_removed(home):
    home.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "half-cache", "empty-cache"):
        (home / name).write_bytes(b"x")
    (home / "empty-atime").write_bytes(b"")
    compilation_cache.remove_unfinished(home)
    assert {"whole-cache", "whole-atime"} <= set(os.listdir(home))
    assert not {"half-cache", "empty-cache"} & set(os.listdir(home))
