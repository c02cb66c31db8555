"""A command whose output is closed, as by `head`, ends silently with SIGPIPE's exit code."""

import os
import signal
import subprocess
import sys

import pytest
from rich.table import Table

from jax_unlearn.runs.terminal import print_table


@pytest.fixture
def closed():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"]], ids=" ".join)
def test_a_closed_output_is_no_error(closed, words):
    command = [sys.executable, "-m", "jax_unlearn", *words]
    done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_table_does_not_choose_the_exit_code(closed, monkeypatch):
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(closed), "w"))
    with pytest.raises(BrokenPipeError):
        print_table(Table("one", "two"))
