"""Seeded hostile inputs: every one is taken, or refused in one line with exit code 2.

A traceback, several lines, a hang, memory without bound, a half-written output or another result is
a fault. The number of inputs of each family is multiplied in the slow test; `tests.attack.fuzz`
goes on for as long as it is told.
"""

import os
import random
import shutil

import pytest

from tests.attack.families import FAMILIES
from tests.attack.outcomes import Attack, fault_of
from tests.attack.place import prepare

BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.__name__)


@pytest.fixture(scope="module")
def place(folder, run, tmp_path_factory):
    return prepare(folder, run, tmp_path_factory.mktemp("attack"))


def faults_of(family, count, place, seed):
    """Each input that did not end as promised."""
    found = [(one.what, fault_of(one)) for one in family(place, random.Random(seed), count)]
    assert len(found) >= count - 1
    return [f"{what}: {fault}" for what, fault in found if fault]


def test_there_are_enough():
    assert sum(FAMILIES.values()) >= 500


@BY_NAME
def test_a_hostile_input_is_taken_or_refused_in_one_line(family, place):
    faults = faults_of(family, FAMILIES[family], place, seed=0)
    assert not faults, "\n".join(faults[:5])


@pytest.mark.slow
@BY_NAME
def test_many_hostile_inputs(family, place):
    seed = int(os.environ.get("ATTACK_SEED", "1"))
    faults = faults_of(family, 4 * FAMILIES[family], place, seed)
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:20])


def test_a_pipe_or_device_is_not_waited_for(folder, run, tmp_path):
    checkpoint = shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    os.mkfifo(checkpoint / "tokenizer.json")
    assert fault_of(Attack("pipe", ["inspect", str(checkpoint)])) is None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words in (
        ["run", "--config", str(pipe), "--out", str(tmp_path / "o")],
        ["evaluate", str(run), "--vlm", "--questions", str(pipe)],
        ["run", "--checkpoint", str(pipe), "--out", str(tmp_path / "o")],
        ["run", "--config", "/dev/zero", "--out", str(tmp_path / "o")],
    ):
        assert fault_of(Attack("pipe or device", words)) is None
