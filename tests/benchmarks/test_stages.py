"""The stages of a command: a stage's time is without that of the stages inside it."""

import importlib
import time
from operator import attrgetter

import pytest

pytest.importorskip("torch")

from benchmarks.speed import stages
from benchmarks.speed.staged import REST, STAGES, START, Clock


def test_every_stage_is_a_function_of_its_module():
    for _, module, name in STAGES:
        assert callable(attrgetter(name)(importlib.import_module(module)))


def test_a_stage_is_without_those_inside_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: (now[0], now[0] / 2)))

    def work(seconds, then=lambda: None):
        now[0] += seconds
        return then()

    clock = Clock(time.time())
    inner = clock.of("inner", work)
    outer = clock.of("outer", lambda: (work(3), inner(2), inner(1), work(4)))
    work(5)
    outer()
    with pytest.raises(ZeroDivisionError):
        clock.of("inner", lambda: work(1, lambda: 1 / 0))()
    work(6)
    clock.lap()
    assert clock.spent["outer"] == [7.0, 3.5]
    assert clock.spent["inner"] == [4.0, 2.0]
    assert clock.spent[REST] == [11.0, 5.5]


def test_the_rest_and_the_sum_come_last():
    found = {
        "seconds": 7.0,
        "cpu_seconds": 9.0,
        "stages": {START: [1.0, 1.5], REST: [2.0, 2.5], "solver": [4.0, 5.0]},
    }
    last = [line.split("|")[1].strip() for line in stages.rows(found).splitlines()[2:]]
    assert last == [START, "solver", REST, "in all"]
