"""Two real processes that come late, never, with a wrong number, or where a proxy is set.

Prints exit codes and seconds, which docs/accelerators.md has.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.scale.crops import free_port
from tests.running import CLOSED_FORM, arguments

pytestmark = pytest.mark.slow
OPTIONS = CLOSED_FORM | {"max_pixels": 512, "wait_seconds": 60}
# Beyond what a process takes to start and, if it is to, to run.
BOUND = 240
PROXY = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture
def together(folder, tmp_path):
    """Runs processes, each (seconds to wait before it starts, its options)."""

    def run(*each, environment=None):
        port, begun = free_port(), time.monotonic()
        started = []
        for delay, options in each:
            time.sleep(max(0, begun + delay - time.monotonic()))
            given = OPTIONS | {"coordinator": f"127.0.0.1:{port}"} | options
            words = [*arguments(folder, tmp_path / "out", **given), "--distributed"]
            process = subprocess.Popen(
                [sys.executable, "-m", "jax_unlearn", *words],
                env=os.environ | (environment or {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append((process, time.monotonic()))
        return [ended(*one) for one in started]

    def ended(process, begun):
        """(exit code, our line or None); prints the seconds since it started."""
        _, errors = process.communicate(timeout=BOUND)
        seconds = time.monotonic() - begun
        assert "Traceback" not in errors, errors
        lines = [line for line in errors.splitlines() if line.startswith("jax-unlearn: ")]
        line = lines[0] if lines else None
        assert len(lines) <= 1, lines
        print(json.dumps({"code": process.returncode, "seconds": round(seconds), "line": line}))
        return process.returncode, line

    return run


def options(process, processes=2, **more):
    return {"process_id": process, "processes": processes} | more


@pytest.mark.parametrize("late", [0, 1])
def test_one_comes_thirty_seconds_late(together, late, tmp_path):
    found = together((0, options(1 - late)), (30, options(late)))
    assert found == [(0, None)] * 2
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (0, "process 1 did not come within 5 s"),
        (1, "process 0 or another process was not there at 127.0.0.1:"),
    ],
)
def test_the_other_never_comes(together, process, message, tmp_path):
    begun = time.monotonic()
    ((code, line),) = together((0, options(process, wait_seconds=5)))
    assert (code, message in line) == (2, True)
    assert time.monotonic() - begun < 60
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([options(0, 3), options(1, 3), options(1, 3)], "two processes have --process-id 1"),
        ([options(0, 2), options(1, 3)], "process 1 was started with --processes 3, process 0"),
        ([options(0, 3), options(1, 2)], "process 1 was started with --processes 2, process 0"),
    ],
    ids=["same id", "more", "fewer"],
)
def test_their_numbers_do_not_fit(together, others, message, tmp_path):
    for code, line in together(*((0, one) for one in others)):
        assert (code, message in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_two_processes_zero(together):
    """The second cannot have the port, and the first waits for another one."""
    found = together((0, options(0, wait_seconds=20)), (0, options(0, wait_seconds=20)))
    assert [code for code, _ in found] == [2, 2]
    assert sum("cannot be used" in line for _, line in found) == 1
    assert sum("process 1 did not come" in line for _, line in found) == 1


def test_an_id_beyond_their_number(together):
    ((code, line),) = together((0, options(2)))
    assert (code, "--process-id 2: must be from 0 to 1" in line) == (2, True)


def test_a_proxy_is_not_in_the_way(together, tmp_path):
    assert together((0, options(0)), (0, options(1)), environment=PROXY) == [(0, None)] * 2
    assert (tmp_path / "out" / "metrics.json").is_file()
