"""Runs, exports and ledgers that are killed at random times: the same bytes in the end, and nothing
else.

SIGKILL, SIGTERM and SIGINT take turns, in extraction, training, saving and exporting, and in the
commands of a ledger. Half of the
kills are at a random time of the process, half as soon as it writes its output. The figures go to
the file KILLS_OUT, from which docs/security.md has them.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import cycle, product
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.harness import write
from benchmarks.speed.tower import machine
from jax_unlearn.features.statistics_file import FILE
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.ledger.listing import listing
from jax_unlearn.runs.ledger.options import Listing
from jax_unlearn.runs.ledger.requests import Request, open_ledger
from jax_unlearn.runtime.digests import DIGEST
from jax_unlearn.runtime.resume import StageSnapshots
from tests.attack.families import contents_of
from tests.running import arguments

OPTIONS = {"granularity": "tokens", "max_pixels": 512, "batch_patches": 512}
OPTIONS |= {"epochs": 60, "chunk": 10, "save_steps": 1}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# Of a process that a signal ended: by the system, or by the program after SIGTERM or SIGINT.
ENDED = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {-2, 130}}
BOUND = 300
# Kills of a command of a ledger before the next has its turn.
EACH = 2
# As each run has other times and pictures, these differ.
VARIED = {"metrics.json", "report.html", "config.json", "digests.json", "README.md"}


def tree(directory):
    """What is the same in every run of each file, and the names of those that differ."""
    return {
        str(path.relative_to(directory)): None if path.name in VARIED else fixed_part(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def fixed_part(path):
    """The bytes of a file; of statistics of a ledger without the digest of its entry, in which is
    the time."""
    if path.name != FILE:
        return path.read_bytes()
    arrays, facts = contents_of(path)
    del facts[DIGEST]
    if facts["requests"]:
        del facts["requests"]["ledger"]["digest"]
    return facts, {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}


def partial(out):
    """Whether an output, or a file of the ledger that it is, is being written."""
    places = (out.parent.glob(f".{out.name}.*.partial"), out.rglob(".*.partial"))
    return any(any(found) for found in places)


def name_of(words):
    """The command of a command line."""
    return " ".join(map(str, words[: 2 if words[0] == "ledger" else 1]))


class Killer:
    """Ends commands at random times, and checks what each leaves.

    counts: the kills by signal and by when they came.
    """

    def __init__(self, place, seed):
        self.place, self.draw = place, random.Random(seed)
        # For each command each signal at both times, in turn.
        self.turns = defaultdict(lambda: cycle(product(SIGNALS, (True, False))))
        self.counts = Counter()
        self.seconds = {}

    def until_done(self, words, out, whole, enough):
        """Start a command until it has ended by itself or there were enough kills in all."""
        while self.counts.total() < enough:
            if self.once(words, out):
                break
            if out.exists():
                # It had written all, and was killed as it removed its snapshots.
                shutil.rmtree(out.with_name(f"{out.name}.resume"), ignore_errors=True)
                break
        else:
            self.run_whole(words)
        assert tree(out) == whole
        assert self.left() <= {"out", "exported", "ledger", "other"}, "leftovers"

    def once(self, words, out):
        """Start a command and kill it; whether it had ended before."""
        command = name_of(words)
        number, random_time = next(self.turns[command])
        process = self.start(words)
        begun = time.monotonic()
        if random_time:
            until = begun + self.draw.random() * 1.5 * self.seconds[command]
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
        else:
            while process.poll() is None and not partial(out):
                time.sleep(0.001)
            time.sleep(self.draw.random() * 0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=BOUND)
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            return True
        assert process.returncode in ENDED[number], (number, process.returncode, errors)
        self.counts[command, number.name, "random" if random_time else "writing"] += 1
        return False

    def start(self, words):
        """Start a command, until its first line: before, Python answers SIGINT with a traceback."""
        process = subprocess.Popen(
            [sys.executable, "-m", "jax_unlearn", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what runs in the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        # NumPy is imported soon after it.
        while (
            process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text()
        ):
            time.sleep(0.01)
        return process

    def run_whole(self, words):
        """Run a command to its end; its seconds are the measure of random times."""
        process, begun = self.start(words), time.monotonic()
        _, errors = process.communicate(timeout=BOUND)
        assert process.returncode == 0, errors
        self.seconds[name_of(words)] = time.monotonic() - begun

    def left(self):
        return {path.name for path in self.place.iterdir()}


def killed(folder, place, kills, seed):
    """Run and export, again and again, until there were enough kills."""
    killer = Killer(place, seed)
    killer.run_whole(arguments(folder, place.parent / "whole", **OPTIONS))
    killer.run_whole(["export", place.parent / "whole", "--out", place.parent / "merged"])
    whole, merged = (tree(place.parent / name) for name in ("whole", "merged"))
    place.mkdir()
    out, exported = place / "out", place / "exported"
    while killer.counts.total() < kills:
        run = [*arguments(folder, out, **OPTIONS), "--resume"]
        killer.until_done(run, out, whole, kills)
        # Exports are killed less often before they have ended, so each run has two.
        for _ in range(2):
            killer.until_done(["export", out, "--out", exported], exported, merged, kills)
            shutil.rmtree(exported)
        shutil.rmtree(out)
    return killer.counts


class LedgerKiller(Killer):
    """Ends commands of a ledger; after each kill the ledger is whole, as before or as after."""

    def until_recorded(self, words, enough):
        """Start a command until its entry is there; whether it was killed after that."""
        ledger = words[2]
        before = what_happened(ledger)
        while self.counts.total() < enough:
            ended = self.once(words, ledger)
            now = what_happened(ledger)
            assert now[: len(before)] == before
            assert len(now) <= len(before) + 1
            if ended or len(now) > len(before):
                break
        else:
            self.run_whole(words)
        kind, concept = what_happened(ledger)[-1]
        assert (kind, len(what_happened(ledger))) == (words[1], len(before) + 1)
        assert {path.name for path in ledger.iterdir()} == {"ledger.jsonl", "lock", "store"}
        return concept


def what_happened(ledger):
    """The entries of a ledger, all of whose files are checked."""
    found = listing(Listing(ledger))
    return [(one["kind"], one["concept"]) for one in found["entries"]]


def killed_ledger(folder, place, kills, seed):
    """Add, withdraw, add again and solve, again and again, until there were enough kills."""
    killer = LedgerKiller(place, seed)
    ledger, out, other = (place / name for name in ("ledger", "out", "other"))
    place.mkdir()
    preserve = ["--preserve", folder / "preserve", "--rank", "2"]
    killer.run_whole(["ledger", "init", ledger, "--checkpoint", folder / "checkpoint", *preserve])
    add = ["ledger", "add", ledger, "--concept", "triangle", "--images", folder / "forget"]
    by_class = ["ledger", "add", ledger, "--concept", "astronaut"]
    id = Request("astronaut", open_ledger(ledger).preserve.of_classes(["astronaut"])).id
    undo = ["ledger", "undo", ledger, id]
    solve = ["ledger", "solve", ledger, "--out", out]
    shutil.copytree(ledger, other)
    for words in (add, by_class, undo):
        killer.run_whole([*words[:2], other, *words[3:]])
    killer.run_whole([*solve[:2], other, "--out", place / "whole"])
    whole = tree(place / "whole")
    for one in (other, place / "whole"):
        shutil.rmtree(one)
    while killer.counts.total() < kills:
        fresh = shutil.copytree(ledger, other)
        for words in (add, by_class, undo):
            again = [*words[:2], fresh, *words[3:]]
            killer.until_recorded(again, min(kills, killer.counts.total() + EACH))
        # As it was, but for the times; and what a killed `add` had stored has been named since.
        assert listing(Listing(fresh))["unnamed"] == []
        again = [*solve[:2], fresh, *solve[3:]]
        killer.until_done(again, out, whole, min(kills, killer.counts.total() + EACH))
        for one in (out, fresh):
            shutil.rmtree(one)
    return killer.counts


def keep(counts):
    """Write the figures to KILLS_OUT, which keeps those of other commands."""
    rows = [
        dict(zip(("command", "signal", "when", "kills"), (*place, count), strict=True))
        for place, count in sorted(counts.items())
    ]
    print(*rows, sep="\n")
    if out := os.environ.get("KILLS_OUT"):
        there = json.loads(Path(out).read_text())["rows"] if Path(out).exists() else []
        commands = {row["command"] for row in rows}
        others = [row for row in there if row["command"] not in commands]
        write(Path(out), {"machine": machine(), "rows": others + rows})


def signals_of(counts, command):
    return {name for words, name, _ in counts if words == command}


EVERY = {number.name for number in SIGNALS}


@pytest.mark.slow
def test_a_hundred_kills(folder, tmp_path):
    counts = killed(folder, tmp_path / "place", int(os.environ.get("KILLS", "100")), seed=1)
    keep(counts)
    assert signals_of(counts, "run") == signals_of(counts, "export") == EVERY


@pytest.mark.slow
def test_fifty_kills_of_a_ledger(folder, tmp_path):
    counts = killed_ledger(folder, tmp_path / "place", 50, seed=2)
    keep(counts)
    for command in ("add", "undo", "solve"):
        assert signals_of(counts, f"ledger {command}") == EVERY


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills(folder, tmp_path, monkeypatch, capsys):
    """What had been done is saved, and nothing else is left."""
    options = OPTIONS | {"workers": 1, "save_steps": None}
    main(arguments(folder, tmp_path / "whole", **options))
    done, stages = StageSnapshots.done, []

    def kill_next(earlier):
        while not (workers := set(multiprocessing.active_children()) - earlier):
            time.sleep(0.01)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)

    def ended(stage, snapshot):
        done(stage, snapshot)
        stages.append(stage)
        if len(stages) == 1:
            Thread(target=kill_next, args=(set(multiprocessing.active_children()),)).start()

    place = tmp_path / "place"
    with monkeypatch.context() as patch:
        patch.setattr(StageSnapshots, "done", ended)
        with pytest.raises(SystemExit) as caught:
            main(arguments(folder, place / "out", **options))
    assert caught.value.code == 2
    said = "--workers 1: a process that decodes images has died (SIGKILL); continue with --resume"
    assert said in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["out.resume"]
    assert len(stages) == 1
    main([*arguments(folder, place / "out", **options), "--resume"])
    assert tree(place / "out") == tree(tmp_path / "whole")
    assert [path.name for path in place.iterdir()] == ["out"]
