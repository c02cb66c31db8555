"""Two real processes that come late, never, with a wrong number, or where a proxy is set.

Exit codes and seconds go to the file LATE_OUT, from which docs/accelerators.md has them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import write
from benchmarks.scale.crops import free_port
from benchmarks.speed.tower import machine
from tests.running import CLOSED_FORM, arguments

pytestmark = pytest.mark.slow
OPTIONS = CLOSED_FORM | {"max_pixels": 512, "wait_seconds": 60}
# Beyond what a process takes to start and, if it is to, to run.
BOUND = 240
PROXY = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def rows():
    """What each case ended with."""
    found = []
    yield found
    if out := os.environ.get("LATE_OUT"):
        write(Path(out), {"machine": machine(), "rows": found})


@pytest.fixture
def together(folder, tmp_path, rows):
    """Runs processes, each (seconds to wait before it starts, its options)."""

    def run(case, *each, environment=None):
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
        found = [ended(*one) for one in started]
        codes, seconds, _ = zip(*found, strict=True)
        rows.append({"case": case, "codes": codes, "seconds": seconds})
        return [(code, line) for code, _, line in found]

    def ended(process, begun):
        """(exit code, seconds since it started, our line or None)."""
        _, errors = process.communicate(timeout=BOUND)
        seconds = time.monotonic() - begun
        assert "Traceback" not in errors, errors
        lines = [line for line in errors.splitlines() if line.startswith("jax-unlearn: ")]
        line = lines[0] if lines else None
        assert len(lines) <= 1, lines
        return process.returncode, round(seconds), line

    return run


def options(process, processes=2, **more):
    return {"process_id": process, "processes": processes} | more


@pytest.mark.parametrize("late", [0, 1])
def test_one_comes_thirty_seconds_late(together, late, tmp_path):
    case = f"process {late} comes 30 s late"
    found = together(case, (0, options(1 - late)), (30, options(late)))
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
    case = f"process {1 - process} never comes, `--wait-seconds 5`"
    ((code, line),) = together(case, (0, options(process, wait_seconds=5)))
    assert (code, message in line) == (2, True)
    assert time.monotonic() - begun < 60
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "others", "message"),
    [
        (
            "two have the same `--process-id`",
            [options(0, 3), options(1, 3), options(1, 3)],
            "two processes have --process-id 1",
        ),
        (
            "`--processes` 2 and 3",
            [options(0, 2), options(1, 3)],
            "process 1 was started with --processes 3, process 0",
        ),
        (
            "`--processes` 3 and 2",
            [options(0, 3), options(1, 2)],
            "process 1 was started with --processes 2, process 0",
        ),
    ],
)
def test_their_numbers_do_not_fit(together, case, others, message, tmp_path):
    for code, line in together(case, *((0, one) for one in others)):
        assert (code, message in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_two_processes_zero(together):
    """The second cannot have the port, and the first waits for another one."""
    each = (0, options(0, wait_seconds=20))
    found = together("two are process 0, `--wait-seconds 20`", each, each)
    assert [code for code, _ in found] == [2, 2]
    assert sum("cannot be used" in line for _, line in found) == 1
    assert sum("process 1 did not come" in line for _, line in found) == 1


def test_an_id_beyond_their_number(together):
    ((code, line),) = together("a `--process-id` beyond `--processes`", (0, options(2)))
    assert (code, "--process-id 2: must be from 0 to 1" in line) == (2, True)


def test_a_proxy_is_not_in_the_way(together, tmp_path):
    case = "`http_proxy` and `https_proxy` that nobody answers"
    found = together(case, (0, options(0)), (0, options(1)), environment=PROXY)
    assert found == [(0, None)] * 2
    assert (tmp_path / "out" / "metrics.json").is_file()
