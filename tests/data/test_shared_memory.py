"""Worker processes are started only where shared memory has room for their batches."""

import os
import re
from types import SimpleNamespace

import pytest

from jax_unlearn.data import shared_memory
from jax_unlearn.data.shared_memory import shared_bytes, workers_in_shared_memory
from jax_unlearn.runtime.errors import UserError

MB = 10**6


@pytest.fixture
def docker(monkeypatch):
    """64 MB, the default of containers."""
    status = SimpleNamespace(f_bavail=16384, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: status)


def test_the_largest_batches_may_be_there_at_once():
    assert shared_bytes([50 * MB] * 99, 2) == (2 * 6 + 3) * 50 * MB
    assert shared_bytes([1, 9, 5], 1) == 15
    assert shared_bytes([1, *[9] * 9], 1) == 81
    assert shared_bytes([50 * MB] * 99, 0) == 0


def test_workers_whose_batches_fit_are_started(docker):
    assert workers_in_shared_memory([4 * MB] * 16, 2, required=True) == 2
    assert workers_in_shared_memory([50 * MB] * 16, 0, required=True) == 0


def test_workers_that_were_asked_for_and_do_not_fit_are_refused(docker, monkeypatch):
    message = (
        "/dev/shm has 67 MB free, and --workers 2 may need 150 MB; use --workers 0, or a larger "
        "/dev/shm (docker run --shm-size=1g)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        workers_in_shared_memory([50 * MB] * 3, 2, required=True)
    monkeypatch.setattr(shared_memory, "SHARED", shared_memory.SHARED / "absent")
    assert workers_in_shared_memory([50 * MB] * 3, 2, required=True) == 2


def test_by_default_threads_take_the_place_of_workers_that_do_not_fit(docker):
    with pytest.warns(UserWarning, match=r"67 MB free, .* 750 MB; .*threads.*--shm-size=1g"):
        assert workers_in_shared_memory([50 * MB] * 99, 2, required=False) == 0
