"""Several processes on 127.0.0.1: the same as one, and an end for all where one ends."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from jax._src import distributed

from benchmarks.scale.crops import free_port, snapshots
from jax_unlearn.data.digests import read_contents
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.streaming import over_all_processes
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime import collectives, processes
from jax_unlearn.runtime.errors import UserError
from tests import warm
from tests.running import CLOSED_FORM, arguments, heard, read, same_outcome

OPTIONS = {"granularity": "tokens"} | CLOSED_FORM
ADAM = {"optimizer": "adam", "epochs": 30, "max_pixels": 512}
HEARTBEAT = 10
# In a pass of the second process, and in the first one's training, for which the other waits.
STOPS = [("1-of-2/preserve", signal.SIGKILL), ("0-of-2/training", signal.SIGTERM)]
# A run whose training fails.
FAILING = """
import sys
from unittest.mock import Mock
from jax_unlearn.runs import pipeline
from jax_unlearn.runtime.errors import UserError
pipeline.judge_of = Mock(side_effect=UserError("no room"))
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
"""
# One that sleeps when it is set up.
SETTING_UP = """
import sys, time
from jax_unlearn.runs import pipeline
def sleep(*_):
    print("asleep", file=sys.stderr, flush=True)
    time.sleep(10**6)
pipeline.open_source = sleep
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
"""
# One whose second process takes its time in each step of a pass.
SLOW = """
import sys, time
from jax_unlearn.features.extractor import Extractor
from jax_unlearn.features.pass_state import PassState
run, share = Extractor.run, PassState.share
def slow(*arguments):
    for batches in run(*arguments):
        if "1" in sys.argv[sys.argv.index("--process-id"):][:2]:
            time.sleep(5)
        yield batches
def said(passed):
    print("waiting", file=sys.stderr, flush=True)
    share(passed)
Extractor.run, PassState.share = slow, said
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
"""
# A peer that is gone is noticed after this many seconds at the latest.
BOUND = 90


def launch(folders, out, devices=2, program=("-m", "jax_unlearn"), **options):
    """A process for each folder, all as one run."""
    port, processes = free_port(), []
    for number, folder in enumerate(folders):
        words = [
            *program,
            *arguments(folder, out, **OPTIONS | {"heartbeat_seconds": HEARTBEAT} | options),
            *("--distributed", "--coordinator", f"127.0.0.1:{port}"),
            *("--process-id", str(number), "--processes", str(len(folders))),
        ]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        processes.append(warm.Process(words, environment))
    return processes


def ended(processes, seconds=300):
    """(exit code, our own lines on stderr) of each."""
    results = []
    for process in processes:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for one in processes:
                one.kill()
            raise
        ours = [line for line in errors.splitlines() if line.startswith("jax-unlearn: ")]
        results.append((process.returncode, ours or errors))
    return results


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("hosts") / "alone"
    main(arguments(folder, out, **OPTIONS))
    return out


def test_two_processes_of_two_devices_give_what_one_gives(alone, folder, tmp_path):
    out = tmp_path / "out"
    results = ended(launch([folder, folder], out))
    assert [code for code, _ in results] == [0, 0], results
    same_outcome(out, alone)
    one, other = (read(path / "metrics.json") for path in (out, alone))
    assert one["samples"] == other["samples"]
    assert 0 < one["tower"]["images"] < other["tower"]["images"]
    assert not out.with_name("out.resume").exists()


def test_a_process_without_an_image_of_a_side_takes_part(folder, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(folder, few)
    for path in sorted((few / "forget").rglob("*.png"))[2:]:
        path.unlink()
    alone, together = tmp_path / "alone", tmp_path / "together"
    main(arguments(few, alone, **OPTIONS))
    # And where tokens to keep are summed on the devices.
    results = ended(launch([few, few], together, sum_on="device"))
    assert [code for code, _ in results] == [0, 0], results
    same_outcome(together, alone)
    assert read(together / "metrics.json")["samples"]["forget"] == 1


def test_processes_that_see_other_files_are_refused_by_all(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    next((other / "preserve").rglob("*.png")).unlink()
    results = ended(launch([folder, other], tmp_path / "out", devices=1))
    for code, lines in results:
        assert code == 2
        (line,) = lines
        assert "the images to preserve differ" in line
    assert not (tmp_path / "out").exists()


def test_what_stops_one_is_told_by_all(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    first = sorted((broken / "forget").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    results = ended(launch([broken, broken], tmp_path / "out", devices=1, strict=[]))
    assert [code for code, _ in results] == [2, 2]
    lines = [line for _, (line,) in results]
    assert all(f"{first.name}: cannot be read" in line for line in lines)
    # Each has it from what they exchanged when the images were read.
    assert not any("has stopped: " in line for line in lines)


def test_what_stops_the_first_alone_is_told_by_the_other_too(folder, tmp_path):
    """Where it works on and the other waits."""
    programs = launch([folder, folder], tmp_path / "out", devices=1, program=("-c", FAILING))
    results = ended(programs)
    assert [code for code, _ in results] == [2, 2], results
    lines = [line for _, (line,) in results]
    assert lines == ["jax-unlearn: no room", "jax-unlearn: process 0 has stopped: no room"]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_that_dies_ends_the_other_in_time(folder, tmp_path, gone):
    options = ADAM | {"epochs": 10**6, "heartbeat_seconds": 5}
    processes = launch([folder, folder], tmp_path / "out", devices=1, **options)
    # Training, of the first one; the other waits for it.
    heard(processes[0], "merger.linear_fc2:")
    processes[gone].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ((code, message),) = ended([processes[1 - gone]], BOUND)
    assert code != 0
    assert time.monotonic() - begun < BOUND
    assert re.search("another process of this run is gone|another task died", str(message))
    processes[gone].communicate(timeout=BOUND)
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_a_process_that_is_still_set_up(folder, tmp_path):
    (process,) = launch([folder], tmp_path / "out", devices=1, program=("-c", SETTING_UP))
    heard(process, "asleep")
    process.send_signal(signal.SIGTERM)
    assert [code for code, _ in ended([process], BOUND)] == [-signal.SIGTERM]


def test_sigterm_saves_what_a_process_has_that_waits_for_another(folder, tmp_path):
    processes = launch([folder, folder], tmp_path / "out", devices=1, program=("-c", SLOW))
    heard(processes[0], "waiting")
    for process in processes:
        process.send_signal(signal.SIGTERM)
    results = ended(processes, BOUND)
    assert [code for code, _ in results] == [128 + signal.SIGTERM] * 2, results
    assert snapshots(tmp_path / "out.resume" / "0-of-2" / "forget")


def test_processes_are_found_by_all_three_options_or_none():
    with pytest.raises(UserError, match="give all three, or none"):
        processes.connect("127.0.0.1:1", None, 2, 10, 1.0)


@pytest.mark.parametrize(("tasks", "devices"), [(4, "all"), (8, "3")])
def test_the_only_task_of_a_slurm_node_has_all_its_devices(monkeypatch, tasks, devices):
    """Several share them, in JAX's own way: one each."""
    facts = {
        "JOB_ID": 7,
        "STEP_NODELIST": "node[1-4]",
        "STEP_NUM_NODES": 4,
        "NTASKS": tasks,
        "PROCID": 3,
        "LOCALID": 3,
    }
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    service, seen = MagicMock(), {"jax_cuda_visible_devices": "all"}
    monkeypatch.setattr(distributed, "_jax", service)
    monkeypatch.setattr(distributed.config, "update", seen.__setitem__)
    monkeypatch.setattr(jax.distributed, "initialize", distributed.State().initialize)
    processes.connect(None, None, None, 10, 1.0)
    assert service.get_distributed_runtime_client.call_args.args == ("node1:61447", 3)
    assert seen["jax_cuda_visible_devices"] == devices


def test_one_process_has_no_others():
    assert (processes.index(), processes.count()) == (0, 1)

    def never():
        raise AssertionError("nobody asked")

    assert list(collectives.all_gather_bytes(never)) == []


def test_two_processes_go_on_after_a_stop_to_the_same_bytes(folder, tmp_path):
    more = ADAM | {"epochs": 100, "chunk": 5, "batch_patches": 256, "save_steps": 1}
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert [code for code, _ in ended(launch([folder, folder], whole, devices=1, **more))] == [0, 0]
    for stage, number in STOPS:
        saved = tmp_path / "out.resume" / stage
        before = snapshots(saved)
        processes = launch([folder, folder], out, devices=1, **more, resume=[])
        while not snapshots(saved) - before:
            assert processes[0].poll() is None, processes[0].communicate()
            time.sleep(0.01)
        for process in processes:
            process.send_signal(number)
        results = ended(processes, BOUND)
        code = 128 + number if number == signal.SIGTERM else -number
        assert [found for found, _ in results] == [code, code], results
        assert not out.exists()
    results = ended(launch([folder, folder], out, devices=1, **more, resume=[]))
    assert [code for code, _ in results] == [0, 0], results
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not out.with_name("out.resume").exists()


def test_each_process_reads_its_part_of_the_images(folder, monkeypatch):
    whole, ours = (find_images(folder / "forget", "forget") for _ in range(2))
    contents, opened = [file.contents for file in whole], []
    theirs = json.dumps([(one.digest.hex(), one.fault) for one in contents[::2]]).encode()

    def all_gather_bytes(value):
        # The first process lists the same files, and reads the first, the third, …
        return [said if len(said := value()) == hashlib.sha256().digest_size else theirs]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: 1)
    monkeypatch.setattr(collectives, "all_gather_bytes", all_gather_bytes)
    monkeypatch.setattr(ImageFile, "source", lambda file: opened.append(file) or file.path)
    read_contents(ours)
    assert set(opened) == set(ours[1::2])
    assert [file.contents for file in ours] == contents
    read_contents(ours)
    assert len(opened) == len(ours) // 2


class Notes(dict):
    """The coordinator's, of a process that has not started one."""

    def key_value_set(self, key, value):
        if key in self:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self[key] = value

    def key_value_dir_get(self, directory):
        return [key for key in self if key.startswith(f"{directory}/")]

    key_value_try_get = dict.__getitem__


@pytest.fixture
def notes(monkeypatch):
    """Of a meeting of two; who waits for the other is interrupted."""
    found = Notes()
    for name, value in {"_coordinator": lambda: found, "count": lambda: 2}.items():
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(time, "sleep", MagicMock(side_effect=KeyboardInterrupt))
    return found


def come(monkeypatch, process):
    monkeypatch.setattr(processes, "index", lambda: process)
    monkeypatch.setattr(processes, "meetings", iter([0]))
    return processes.meeting()


def test_who_ends_before_a_meeting_calls_it_off(notes, monkeypatch):
    with pytest.raises(KeyboardInterrupt), come(monkeypatch, 0):
        raise AssertionError("alone in a collective")
    with pytest.raises(processes.PeerError, match="of this run ends"), come(monkeypatch, 1):
        raise AssertionError("alone in a collective")
    assert not processes.exchanging


def test_who_ends_when_others_have_begun_takes_part_first(notes, monkeypatch):
    notes[f"{processes.DECIDED}/0"] = processes.GO
    seen = []
    with pytest.raises(KeyboardInterrupt), come(monkeypatch, 0):
        seen.append(processes.exchanging)
    assert seen == [True]
    assert not processes.exchanging


def test_numbers_are_whole_in_parts_to_the_share_of_the_largest_that_is_said():
    """The way to a sum and back, with one process in it; what a float64 holds beyond is lost."""
    random = np.random.default_rng(0)
    x = random.normal(size=1000) * 2.0 ** random.integers(-80, 40, size=1000)
    x[:3] = 0.0, -np.abs(x).max(), 5e-324
    exponent = collectives._exponent(x)
    error = np.abs(collectives._total(x, exponent) - x)
    assert np.all(error <= 2.0 ** (exponent - 59))
    large = np.abs(x) > 2.0 ** (exponent - 6)
    np.testing.assert_array_equal(error[large], 0)
    assert collectives._exponent(np.array([1.0, np.nan])) == collectives.NOT_FINITE


def test_without_a_path_there_is_nothing_to_add_up(monkeypatch):
    """As where linear_fc1 is adapted, which has no statistics."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert over_all_processes({}) == {}
