"""--track: TensorBoard's own files, and one line where a package is missing."""

import importlib.util
import struct
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from jax_unlearn.runs import tracking
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runs.tracking import check_installed, numbers, track
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError

HISTORY = [{"forget": 2.0, "total": 3.0}, {"forget": 1.0, "total": 1.5}]


def events(folder):
    """The events of the only file; a record is its length, a checksum, the data and another."""
    (file,) = folder.iterdir()
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length


def test_tensorboard_reads_what_was_measured(run, tmp_path):
    config, metrics = (
        read_config(run).replace(track=("tensorboard",)),
        read_sealed(run / "metrics.json"),
    )
    track(config, tmp_path, HISTORY, metrics)
    found = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert found["training/forget", 0] == 2.0
    assert found["training/total", 1] == 1.5
    after = metrics["forget"]["accuracy_after"]
    assert found["forget/accuracy_after", 2] == pytest.approx(after)


def test_wandb_gets_settings_history_and_metrics(run, tmp_path, monkeypatch):
    """The client is not in the test environment: what it is called with."""
    logged, summary, begun = [], {}, {}

    class Logged:
        def __enter__(self):
            return SimpleNamespace(
                log=lambda values, step: logged.append((step, values)),
                summary=SimpleNamespace(update=summary.update),
            )

        def __exit__(self, *_):
            pass

    client = SimpleNamespace(init=lambda **how: begun.update(how) or Logged())
    monkeypatch.setitem(sys.modules, "wandb", client)
    config, metrics = read_config(run).replace(track=("wandb",)), read_sealed(run / "metrics.json")
    track(config, tmp_path, HISTORY, metrics)
    assert logged[1] == (1, {"training/forget": 1.0, "training/total": 1.5})
    assert begun["config"]["rank"] == config.solver.rank
    assert summary == dict(numbers(metrics))
    assert summary["adapter/rank"] == config.solver.rank


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    check_installed(["tensorboard"])
    monkeypatch.setitem(tracking.PACKAGES, "tensorboard", "no_such_package")
    assert importlib.util.find_spec("no_such_package") is None
    with pytest.raises(
        UserError, match=r"--track tensorboard: no_such_package is not installed; pip"
    ):
        check_installed(["tensorboard"])
