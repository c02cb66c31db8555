"""Ctrl-C ends a program wherever it comes, with one line and no traceback."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref

import pytest

from jax_unlearn.runtime import interrupts
from jax_unlearn.runtime.interrupts import raise_until_heeded


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(interrupts, "RETRY_SECONDS", 0.1)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


class Interrupted:
    """Is interrupted while it is finalised, where what is raised is lost."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def in_a_finaliser():
    Interrupted()
    time.sleep(60)


def in_a_callback_of_the_garbage_collector():
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    # Garbage of other tests may have callbacks of weak references, where it is lost at first.
    gc.collect()
    gc.callbacks.append(interrupted)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(interrupted)
    time.sleep(60)


def in_a_weak_references_callback():
    one = Held()
    reference = weakref.ref(one, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del one
    time.sleep(60)
    del reference


class Held:
    """Has nothing but a weak reference."""


def where_it_becomes_another_error():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise RuntimeError("a callback failed") from error


@pytest.mark.parametrize(
    "work",
    [in_a_finaliser, in_a_callback_of_the_garbage_collector, where_it_becomes_another_error],
)
def test_an_interrupt_is_not_lost(work, monkeypatch):
    """Nor printed."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), raise_until_heeded():
        work()
    assert time.monotonic() - begun < 30
    assert not lost


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_is_lost_comes_again():
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), raise_until_heeded():
        in_a_weak_references_callback()
    assert time.monotonic() - begun < 30


def test_what_is_closed_for_it_is_closed_once():
    closed = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            time.sleep(0.3)
            closed.append(True)

    with pytest.raises(KeyboardInterrupt), raise_until_heeded():
        work()
    assert closed == [True]


def test_other_errors_and_ignored_signals_stay():
    with pytest.raises(ValueError, match="ours"), raise_until_heeded():
        raise ValueError("ours")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raise_until_heeded():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    """Python says which modules it has imported; this one is among the first of the program."""
    command = [sys.executable, "-X", "importtime", "-m", "jax_unlearn", "export", "x", "--out", "y"]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    module = " jax_unlearn.runs.settings.config"
    assert any(line.rstrip().endswith(module) for line in program.stderr)
    program.send_signal(signal.SIGINT)
    *_, last = (line for line in program.stderr.read().splitlines() if "import time:" not in line)
    program.stderr.close()
    assert (program.wait(), last) == (130, "jax-unlearn: interrupted")


def test_a_signal_at_the_end_of_the_block_leaves_no_timer(monkeypatch):
    """Which would end the process by SIGALRM when Python has put its handlers away."""
    earlier, stop = signal.getsignal(signal.SIGALRM), signal.setitimer

    def interrupted(which, seconds):
        if not seconds:
            signal.raise_signal(signal.SIGINT)
        return stop(which, seconds)

    monkeypatch.setattr(signal, "setitimer", interrupted)
    with pytest.raises(KeyboardInterrupt), raise_until_heeded():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == earlier
