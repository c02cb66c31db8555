"""Runs that are stopped and go on: to the same bytes, or not at all."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale.crops import snapshots
from jax_unlearn.data.images import ImageFile
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.fingerprint import GROUPS, differences
from jax_unlearn.runtime import processes
from jax_unlearn.runtime.errors import StoppedError, UserError
from jax_unlearn.runtime.orbax_store import NOTES
from jax_unlearn.runtime.resume import RunSnapshots, StageSnapshots, TerminatedError
from jax_unlearn.runtime.snapshots import Snapshot
from jax_unlearn.solvers import until_forgotten
from tests import warm
from tests.running import arguments, heard, read

# Several batches in each pass, and several chunks of epochs.
PATCHES = 512
OPTIONS = {
    "granularity": "tokens",
    "max_pixels": 512,
    "batch_patches": PATCHES,
    "epochs": 60,
    "chunk": 10,
}
# Seconds in which a process must have ended.
BOUND = 300
SAVING = ["--save-steps", "1"]
FILES = ("adapter/adapter_model.safetensors", "statistics.safetensors", "history.jsonl")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nothing stopped and that saved nothing."""
    out = tmp_path_factory.mktemp("resume") / "whole"
    main(arguments(folder, out, **OPTIONS))
    return out


def same(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def stop_after(monkeypatch, count):
    """As SIGTERM would, after so many steps."""
    step, taken = StageSnapshots.step, []

    def counted(self, snapshot):
        taken.append(self)
        self.journal.terminated = len(taken) == count
        step(self, snapshot)

    monkeypatch.setattr(StageSnapshots, "step", counted)


def stopped(monkeypatch, folder, out, count, *more, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(SystemExit) as caught:
            main([*arguments(folder, out, **OPTIONS | options), *more])
    assert caught.value.code == 128 + signal.SIGTERM
    return out.with_name(f"{out.name}.resume")


# A step of each pass, and of training; with and without snapshots before the last.
@pytest.mark.parametrize(("count", "more"), [(1, []), (3, SAVING), (7, []), (9, SAVING)])
def test_a_run_goes_on_where_it_was_stopped(
    monkeypatch, folder, whole, tmp_path, capsys, count, more
):
    out = tmp_path / "out"
    saved = stopped(monkeypatch, folder, out, count, *more)
    assert "--resume continues" in capsys.readouterr().err
    assert saved.is_dir()
    # It holds means of images.
    assert saved.stat().st_mode & 0o777 == 0o700
    assert not out.exists()
    taken = []
    monkeypatch.setattr(StageSnapshots, "step", lambda self, _: taken.append(self))
    main([*arguments(folder, out, **OPTIONS), "--resume", *more])
    assert same(out, whole)
    assert not saved.exists()
    # Nothing is done again.
    assert len(taken) == steps_of(whole) - count


def steps_of(run):
    """Of all passes and of training, if nothing stops it."""
    samples, patches = read(run / "metrics.json")["samples"], read(run / "metrics.json")["tower"]
    groups = [samples[name] for name in ("forget", "preserve", "forget_held_out")]
    groups.append(samples["preserve_held_out"])
    each = patches["patches"] // patches["images"]
    batches = sum(-(-count * each // PATCHES) for count in groups)
    return batches + OPTIONS["epochs"] // OPTIONS["chunk"]


def test_a_search_goes_on_with_the_training_that_was_stopped(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(until_forgotten, "MOST", 5)
    options = {"until_forgotten": 0.999, "lambda_forget": 0.5, "epochs": 10, "chunk": 5}
    main(arguments(folder, tmp_path / "whole", **OPTIONS | options))
    passes = steps_of(tmp_path / "whole") - OPTIONS["epochs"] // OPTIONS["chunk"]
    # The second step of the third training.
    stopped(monkeypatch, folder, tmp_path / "out", passes + 6, *SAVING, **options)
    main([*arguments(folder, tmp_path / "out", **OPTIONS | options), "--resume"])
    assert same(tmp_path / "out", tmp_path / "whole")
    ours, theirs = (read(tmp_path / name / "metrics.json")["search"] for name in ("out", "whole"))
    assert ours == theirs
    assert ours["trials"] == 5


def test_what_chooses_on_held_out_rows_goes_on_too(monkeypatch, folder, tmp_path):
    options = OPTIONS | {"select": "held_out", "learning_rate": 0.3}
    main(arguments(folder, tmp_path / "whole", **options))
    steps = steps_of(tmp_path / "whole")
    stopped(monkeypatch, folder, tmp_path / "out", steps - 1, **options)
    main([*arguments(folder, tmp_path / "out", **options), "--resume"])
    assert same(tmp_path / "out", tmp_path / "whole")


def test_training_on_statistics_goes_on_without_the_images(monkeypatch, run, folder, tmp_path):
    copy = tmp_path / "first"
    shutil.copytree(run, copy)
    command = ["run", "--statistics", str(copy), "--epochs", "60", "--chunk", "10", "--out"]
    main([*command, str(tmp_path / "whole")])
    gone = property(lambda file: pytest.fail(f"{file.name} was read"))
    monkeypatch.setattr(ImageFile, "digest", gone)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "out")])
    main([*command, str(tmp_path / "out"), "--resume"])
    assert same(tmp_path / "out", tmp_path / "whole")


def test_a_damaged_snapshot_gives_way_to_the_one_before(tmp_path):
    stage = journal(tmp_path / "out").stage("forget")
    for number in range(2):
        stage.step(lambda number=number: Snapshot({"x": np.full(9, number)}, {}))
    (file,) = (stage.directory / "2").rglob("snapshot")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="is damaged"):
        found = journal(tmp_path / "out").stage("forget").load()
    assert found.arrays["x"][0] == 0


@pytest.mark.parametrize(
    "notes",
    [
        {"x": 1, "custom_metadata": {}},
        {"commit_timestamp_nsecs": "x"},
        {"commit_timestamp_nsecs": 10**40},
        {"item_handlers": 3},
    ],
)
def test_what_orbax_notes_beside_a_snapshot_may_be_damaged(tmp_path, notes):
    stage = journal(tmp_path / "out").stage("forget")
    for number in range(2):
        stage.step(lambda number=number: Snapshot({"x": np.full(9, number)}, {}))
    path = stage.directory / "2" / NOTES
    path.write_text(json.dumps(read(path) | notes))
    found = journal(tmp_path / "out").stage("forget")
    assert found.load().arrays["x"][0] == 1
    found.step(lambda: Snapshot({"x": np.full(9, 2)}, {}))
    assert journal(tmp_path / "out").stage("forget").load().arrays["x"][0] == 2


def test_a_stage_that_took_no_time_is_saved_by_sigterm_only(monkeypatch, tmp_path):
    """Or if memory should not hold it."""
    ours = journal(tmp_path / "out", seconds=600.0)
    one, other = ours.stage("forget"), ours.stage("preserve")
    for stage in (one, other):
        stage.step(lambda: Snapshot({"x": np.zeros(1)}, {}))
        stage.done(lambda: Snapshot({"x": np.ones(1)}, {}))
    assert not ours.place.all.exists()
    with pytest.raises(TerminatedError), ours.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    for name in ("forget", "preserve"):
        assert journal(tmp_path / "out").stage(name).load().arrays["x"][0] == 1
    monkeypatch.setattr("jax_unlearn.runtime.resume.MAX_UNSAVED_BYTES", 7)
    third = journal(tmp_path / "large", seconds=600.0).stage("forget")
    third.step(dict)
    third.done(lambda: Snapshot({"x": np.ones(1)}, {}))
    assert third.directory.is_dir()


def test_without_resume_nothing_is_loaded(tmp_path):
    journal(tmp_path / "out").stage("forget").step(lambda: Snapshot({"x": np.zeros(1)}, {}))
    fresh = journal(tmp_path / "out", resume=False, overwrite=True)
    assert fresh.stage("forget").load() is None
    assert not (tmp_path / "out.resume" / "0-of-1").exists()


def refusal(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, command)])
    assert caught.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("jax-unlearn: ")]
    return line


def test_another_run_is_refused_by_what_changed(monkeypatch, folder, tmp_path, capsys):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(folder / "checkpoint", copy / "checkpoint")
    for side in ("forget", "preserve"):
        shutil.copytree(folder / side, copy / side)
    saved = stopped(monkeypatch, copy, out, 2)
    capsys.readouterr()
    again = [*arguments(copy, out, **OPTIONS), "--resume"]
    assert f"{saved}: an earlier run was stopped" in refusal(capsys, *again[:-1])
    assert "--rank: 2 then, 3 now" in refusal(capsys, *again, "--rank", 3)

    image = next((copy / "forget").rglob("*.png"))
    image.rename(tmp_path / "elsewhere")
    assert "the images to forget differ: 8 then, 7 now" in refusal(capsys, *again)
    (tmp_path / "elsewhere").rename(image)

    weights = copy / "checkpoint" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    before, size = bytes(data), int.from_bytes(data[:8], "little")
    name = b"model.visual.patch_embed.proj.weight"
    header = json.loads(data[8 : 8 + size])
    data[8 + size + header[name.decode()]["data_offsets"][0]] ^= 1
    weights.write_bytes(data)
    assert "checkpoint: other weights then than now" in refusal(capsys, *again)
    weights.write_bytes(before)

    main(again)
    assert not saved.exists()


def test_overwrite_begins_again(monkeypatch, folder, whole, tmp_path):
    out = tmp_path / "out"
    saved = stopped(monkeypatch, folder, out, 2)
    # Nor does it matter that another process loads the images.
    main([*arguments(folder, out, **OPTIONS), "--overwrite", "--workers", "1"])
    assert same(out, whole)
    assert not saved.exists()


def facts():
    groups = dict.fromkeys(GROUPS, 0)
    return {"settings": {}, "samples": groups, "counts": groups, "contents": "", "devices": ""}


def journal(out, **options):
    settings = {
        "facts": facts,
        "differences": differences,
        "seconds": 0.0,
        "steps": None,
        "resume": True,
        "overwrite": False,
    }
    return RunSnapshots(out, **settings | options)


def test_a_snapshot_comes_back_to_the_bit(tmp_path):
    arrays = {
        "merger.linear_fc2.x": np.random.default_rng(0).normal(size=(3, 4)),
        "half": np.float32([1 / 3]),
        "none": np.zeros((0, 5), np.float32),
        "by_image": np.array(True),
        "count": np.array(7),
    }
    stage = journal(tmp_path / "out").stage("forget")
    assert stage.load() is None
    for step in range(4):
        stage.step(lambda step=step: Snapshot(arrays, {"step": step, "reasons": {"3": "x"}}))
    found = journal(tmp_path / "out").stage("forget").load()
    assert found.facts == {"step": 3, "reasons": {"3": "x"}}
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.arrays[name], array)
    kept = sorted(path.name for path in stage.directory.iterdir())
    assert kept == ["3", "4"]
    assert len(Snapshot.of_bytes(found.to_bytes()).arrays) == len(arrays)


def test_the_number_of_processes_must_be_the_same(tmp_path):
    (tmp_path / "out.resume" / "1-of-2").mkdir(parents=True)
    with pytest.raises(UserError, match="had 2 processes"):
        journal(tmp_path / "out")


def test_what_others_left_there_is_no_process(tmp_path):
    directory = tmp_path / "out.resume" / "0-of-1"
    directory.mkdir(parents=True)
    (tmp_path / "out.resume" / ".DS_Store").touch()
    journal(tmp_path / "out").finish()
    assert [*(tmp_path / "out.resume").iterdir()] == [tmp_path / "out.resume" / ".DS_Store"]
    journal(tmp_path / "out", resume=False)
    for text in ("", "[]", '{"settings": {}}'):
        directory.mkdir(exist_ok=True)
        (directory / "facts.json").write_text(text)
        with pytest.raises(UserError, match=r"facts.json: is damaged.* --overwrite alone"):
            journal(tmp_path / "out")


def test_what_is_not_ours_is_refused_and_stays(tmp_path):
    """Nothing below OUT.resume but snapshots is removed, and nothing through a link."""
    mine, resume = tmp_path / "mine", tmp_path / "out.resume"
    mine.mkdir()
    (mine / "photo").write_text("mine")
    stage = journal(tmp_path / "out").stage("forget")
    stage.step(lambda: Snapshot({"x": np.zeros(1)}, {}))
    stage.journal.close()
    for place in ("photos", "0-of-1/photos", "0-of-1/forget/photos", "0-of-1/facts.bak"):
        for make in (lambda path: shutil.copytree(mine, path), lambda path: path.symlink_to(mine)):
            make(resume / place)
            for options in ({}, {"resume": False, "overwrite": True}, {"resume": False}):
                with pytest.raises(UserError, match=f"{place}.*: is no snapshot of a run"):
                    journal(tmp_path / "out", **options)
            left = resume / place
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
    resume.rename(tmp_path / "elsewhere")
    resume.symlink_to(mine)
    with pytest.raises(UserError, match=r"out.resume: is no snapshot of a run"):
        journal(tmp_path / "out", resume=False, overwrite=True)
    assert (mine / "photo").read_text() == "mine"
    resume.unlink()
    (tmp_path / "elsewhere").rename(resume)
    journal(tmp_path / "out", resume=False, overwrite=True)
    assert not resume.exists()


def test_one_run_at_a_time_has_the_snapshots(tmp_path):
    """The other is a process of its own, since a process shares its locks."""
    ours = journal(tmp_path / "out")
    ours.stage("forget").step(lambda: Snapshot({"x": np.zeros(1)}, {}))
    program = f"""
from pathlib import Path
from jax_unlearn.runtime.errors import UserError
from tests.runtime.test_resume import journal
for options in {{}}, {{"resume": False, "overwrite": True}}, {{"resume": False}}:
    try:
        journal(Path({str(tmp_path / "out")!r}), **options)
    except UserError as error:
        print(error)
"""
    other = warm.run(["-c", program], timeout=BOUND)
    said = other.stdout.splitlines()
    assert len(said) == 3, other.stderr
    assert all("another run with this --out is at work" in line for line in said)
    ours.finish()
    assert not ours.place.all.exists()


def test_processes_that_end_together_do_not_stumble_over_each_other(monkeypatch, tmp_path):
    for name in ("rmdir", "iterdir"):
        (tmp_path / "out.resume" / "0-of-1").mkdir(parents=True)
        whole = getattr(Path, name)

        def after_another(path, whole=whole):
            shutil.rmtree(path)
            return whole(path)

        ours = journal(tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, after_another)
            ours.finish()
        assert not ours.place.all.exists()


def test_a_place_that_refuses_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "out.resume").write_text("a file")
    command = [*arguments(folder, tmp_path / "out", **OPTIONS), *SAVING, "--resume"]
    assert f"{tmp_path}/out.resume" in refusal(capsys, *command)


def test_a_full_disk_is_one_line_and_the_earlier_snapshot_loads(tmp_path):
    """The file system's answer is that of a limit on the size of files, in a process of its own."""
    stage = journal(tmp_path / "out").stage("forget")
    small = Snapshot({"x": np.arange(10)}, {})
    stage.step(lambda: small)
    stage.journal.close()
    program = f"""
import numpy as np, resource
from pathlib import Path
from jax_unlearn.runtime.snapshots import Snapshot
from tests.runtime.test_resume import journal
stage = journal(Path({str(tmp_path / "out")!r})).stage("forget")
stage.load()
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
from jax_unlearn.runtime.errors import UserError
try:
    stage.step(lambda: Snapshot({{"x": np.random.default_rng(0).normal(size=2**20)}}, {{}}))
except UserError as error:
    print(error)
"""
    done = warm.run(["-c", program], timeout=BOUND)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    assert f"{tmp_path}/out.resume" in done.stdout
    assert "continue with --resume" in done.stdout
    found = journal(tmp_path / "out").stage("forget").load()
    np.testing.assert_array_equal(found.arrays["x"], np.arange(10))


def launch(folder, out, *more):
    command = [*arguments(folder, out, **OPTIONS), "--resume", *more]
    return warm.Process(["-m", "jax_unlearn", *command])


def killed(folder, out, whole, kills):
    """Starts the run again and again, and kills it at random some snapshots later, so many times.

    When it has ended before, it must have ended like `whole`, and begins anew.
    """
    draw, saved = random.Random(kills), out.with_name(f"{out.name}.resume")
    done = 0
    while done < kills:
        process, before = launch(folder, out, *SAVING), snapshots(saved)
        seen: set[str] = set()
        wanted = draw.randint(0, 3)
        while process.poll() is None and len(seen - before) < wanted:
            seen |= snapshots(saved)
            time.sleep(0.002)
        time.sleep(draw.random() * (0.2 if wanted else 8))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=BOUND)
        assert process.returncode in (0, -signal.SIGKILL), errors
        done += process.returncode != 0
        if out.exists():
            assert same(out, whole)
            shutil.rmtree(out)
            shutil.rmtree(saved, ignore_errors=True)
    process = launch(folder, out, *SAVING)
    _, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 0, errors
    assert same(out, whole)


def test_killed_at_random_points_it_ends_with_the_same_bytes(folder, whole, tmp_path):
    killed(folder, tmp_path / "out", whole, kills=3)


@pytest.mark.slow
def test_killed_fifty_times_it_ends_with_the_same_bytes(folder, whole, tmp_path):
    killed(folder, tmp_path / "out", whole, kills=50)


class Stopped:
    """Is sent a signal while it is finalised, where what is raised is lost."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_whatever_was_at_work(monkeypatch, tmp_path, number):
    monkeypatch.setattr("jax_unlearn.runtime.interrupts.RETRY_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGINT)
    begun = time.monotonic()

    def work():
        Stopped(number)
        time.sleep(BOUND)

    with pytest.raises(TerminatedError) as caught, journal(tmp_path / "out").listening():
        work()
    assert caught.value.number == number
    assert not caught.value.saved
    assert time.monotonic() - begun < BOUND
    # Nothing of it is left.
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_signal_that_became_another_error_is_heeded(tmp_path):
    """As compiled code does with what is raised in a callback."""

    def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except TerminatedError as error:
            raise RuntimeError("a callback failed") from error

    ours = journal(tmp_path / "out", seconds=600.0)
    ours.stage("forget").step(lambda: Snapshot({"x": np.ones(1)}, {}))
    with pytest.raises(TerminatedError) as caught, ours.listening():
        work()
    assert caught.value.saved
    assert journal(tmp_path / "out").stage("forget").load().arrays["x"][0] == 1


def test_where_nothing_is_saved_no_one_is_told_to_resume(monkeypatch, folder, tmp_path, capsys):
    """As during a fit of a ledger's requests, which saves no snapshots."""

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("jax_unlearn.runs.pipeline.check_questions", stop)
    with pytest.raises(SystemExit) as caught:
        main(arguments(folder, tmp_path / "out", **OPTIONS))
    assert caught.value.code == 128 + signal.SIGTERM
    line = "jax-unlearn: terminated; nothing was saved yet, so the same command begins again\n"
    assert capsys.readouterr().err.endswith(line)
    assert not (tmp_path / "out.resume").exists()


def test_sigterm_waits_for_an_exchange_with_others(monkeypatch, tmp_path):
    monkeypatch.setattr("jax_unlearn.runtime.interrupts.RETRY_SECONDS", 0.1)
    done = []

    def work():
        monkeypatch.setattr(processes, "exchanging", True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        done.append(True)
        monkeypatch.setattr(processes, "exchanging", False)
        time.sleep(BOUND)

    with pytest.raises(TerminatedError), journal(tmp_path / "out").listening():
        work()
    assert done


def test_what_was_done_is_saved_where_a_process_is_gone(tmp_path):
    ours = journal(tmp_path / "out", seconds=600.0)
    stage = ours.stage("forget")
    stage.step(lambda: Snapshot({"x": np.zeros(1)}, {}))
    stage.done(lambda: Snapshot({"x": np.ones(1)}, {}))
    other = ours.stage("preserve")
    other.step(lambda: Snapshot({"x": np.full(1, 7)}, {}))
    with pytest.raises(StoppedError, match="gone"), ours.listening():
        raise StoppedError("gone")
    assert journal(tmp_path / "out").stage("forget").load().arrays["x"][0] == 1
    assert journal(tmp_path / "out").stage("preserve").load().arrays["x"][0] == 7
    # It was terminated too, but later than the other said so.
    ours.terminated = True
    with pytest.raises(TerminatedError), ours.listening():
        raise processes.PeerError("gone")


def test_sigterm_does_not_disturb_what_is_closed_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr("jax_unlearn.runtime.interrupts.RETRY_SECONDS", 0.05)
    closed = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(BOUND)
        finally:
            time.sleep(0.3)
            closed.append(True)

    with pytest.raises(TerminatedError), journal(tmp_path / "out").listening():
        work()
    assert closed


def test_sigint_saves_first(folder, whole, tmp_path):
    out = tmp_path / "out"
    process = launch(folder, out)
    heard(process, "merger.linear_fc2:")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 130
    assert "jax-unlearn: interrupted; the same command with --resume continues" in errors
    passes = ("forget", "preserve", "forget-held-out", "preserve-held-out")
    assert all(snapshots(tmp_path / "out.resume" / "0-of-1" / name) for name in passes)
    main([*arguments(folder, out, **OPTIONS), "--resume"])
    assert same(out, whole)


def test_signals_do_not_interrupt_the_removal_of_the_snapshots(folder, tmp_path, monkeypatch):
    """The output is whole by then, and the run ends as if nothing had come."""
    finish, seen = RunSnapshots.finish, []

    def interrupted(ours):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        seen.append(ours.place.own.exists())
        finish(ours)

    monkeypatch.setattr(RunSnapshots, "finish", interrupted)
    main([*arguments(folder, tmp_path / "out", **OPTIONS), *SAVING, "--resume"])
    assert seen == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
