"""Seeded hostile inputs: every one is taken, or refused in one line with exit code 2.

A traceback, several lines, a hang, memory without bound or a half-written output is a fault. The
number of inputs of each family is multiplied in the slow test.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.used_if import leaf_fields, option

NASTY = [
    None, True, False, -1, 0, 1, 3, 10**9, 2**40, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\n", "\x1b[31m", "é" * 40, "9" * 4000, [], [1], [None], [[]], {},
    {"a": 1}, [1] * 300, "/etc/passwd", "../x",
]  # fmt: skip
SECONDS = 30


class HangError(BaseException):
    """Nothing had happened in time."""


def outcome(words: list[str]) -> str | None:
    """What is wrong with how a command ended; None if it ended as promised."""

    def hung(*_: object) -> None:
        raise HangError

    said, printed = io.StringIO(), io.StringIO()
    earlier = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    code: object = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            main(words)
    except SystemExit as ended:
        code = ended.code
    except HangError:
        return f"took {SECONDS} seconds"
    except BaseException as error:
        return f"raised {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("jax-unlearn:")]
    if code in (0, None):
        return None
    if code != 2:
        return f"exit code {code}: {said.getvalue()[-300:]}"
    if len(lines) != 1 or said.getvalue().splitlines()[-1] != lines[0]:
        return f"not one line: {said.getvalue()[-300:]}"
    if "\x1b" in said.getvalue() or "\x1b" in printed.getvalue():
        return "a control character on the terminal"
    return None


def mutated(tree: object, pick: random.Random) -> object:
    """A copy of a JSON tree in which one or two places have another value, or are gone."""
    copy = json.loads(json.dumps(tree))
    for _ in range(pick.choice([1, 1, 2])):
        at = copy
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = pick.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and pick.random() < 0.7:
                at = at[key]
                continue
            if pick.random() < 0.15:
                del at[key]
            else:
                at[key] = pick.choice(NASTY)
            break
    return copy


def flipped(data: bytes, pick: random.Random) -> bytes:
    """Bytes with a few changed, or cut, or followed by others."""
    how = pick.random()
    if how < 0.2:
        return data[: pick.randrange(len(data))]
    if how < 0.3:
        return data + pick.randbytes(9)
    out = bytearray(data)
    for _ in range(pick.choice([1, 3, 20])):
        out[pick.randrange(min(len(out), pick.choice([16, 400, len(out)])))] = pick.randrange(256)
    return bytes(out)


@pytest.fixture
def checkpoint(folder, tmp_path):
    return shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")


def json_files(path: Path, pick: random.Random, count: int) -> Iterator[str]:
    """Write `count` variants of a JSON file one after another; yields what each is."""
    original = path.read_text()
    tree = json.loads(original)
    for number in range(count):
        text = json.dumps(mutated(tree, pick))
        if number % 12 == 0:
            text = pick.choice(
                ["", "[" * 100_000, "{", "[]", "null", text[:-1], "\x00", "9" * 5000]
            )
        path.write_text(text)
        yield f"{path.name} {number}: {text[:300]}"
    path.write_text(original)


def attack_config(checkpoint, run, pick, count):
    for what in json_files(checkpoint / "config.json", pick, count):
        yield what, ["inspect", str(checkpoint)]


def attack_processor(checkpoint, run, pick, count):
    for what in json_files(checkpoint / "preprocessor_config.json", pick, count):
        yield what, ["inspect", str(checkpoint)]


def attack_weights(checkpoint, run, pick, count):
    path = checkpoint / "model.safetensors"
    original = path.read_bytes()
    for number in range(count):
        path.write_bytes(flipped(original, pick))
        yield f"weights {number}", ["inspect", str(checkpoint)]
    path.write_bytes(original)


def attack_index(checkpoint, run, pick, count):
    weights = checkpoint / "model.safetensors"
    shard = weights.rename(checkpoint / "a.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"model.visual.x": "a.safetensors"}, "metadata": {}})
    )
    names = ["/etc/passwd", "../a.safetensors", "x" * 300, "", ".", "..", "a/b", "\x00", "a\n"]
    for what in json_files(index, pick, count):
        if pick.random() < 0.5:
            index.write_text(json.dumps({"weight_map": {"a": pick.choice(names)}}))
        yield what, ["inspect", str(checkpoint)]
    index.unlink()
    shard.rename(weights)


def attack_adapter(checkpoint, run, pick, count):
    copy = shutil.copytree(run, checkpoint.parent / "run")
    out = str(checkpoint.parent / "exported")
    for what in json_files(copy / "adapter" / "adapter_config.json", pick, count // 2):
        yield what, ["export", str(copy), "--out", out, "--format", "peft", "--overwrite"]
    path = copy / "adapter" / "adapter_model.safetensors"
    original = path.read_bytes()
    for number in range(count // 2):
        path.write_bytes(flipped(original, pick))
        yield f"adapter {number}", ["export", str(copy), "--out", out, "--overwrite"]
    path.write_bytes(original)


def attack_run_files(checkpoint, run, pick, count):
    copy = shutil.copytree(run, checkpoint.parent / "copy")
    for name in ("config.json", "metrics.json"):
        for what in json_files(copy / name, pick, count // 2):
            yield what, ["export", str(copy), "--out", str(checkpoint.parent / "x"), "--overwrite"]


def attack_options(checkpoint, run, pick, count):
    names = sorted(set(leaf_fields(RunConfig)) - {"out", "overwrite", "resume", "distributed"})
    values = [
        "",
        "-1",
        "0",
        "nan",
        "inf",
        "1e999",
        "9" * 400,
        "x",
        "None",
        "/dev/null",
        "\x1b[31m",
        "é",
    ]
    for number in range(count):
        name, value = pick.choice(names), pick.choice(values)
        words = ["run", "--checkpoint", str(checkpoint / "gone"), "--out", str(checkpoint / "out")]
        yield f"option {number}: {name} {value!r}", [*words, option(name), value]


def attack_config_files(checkpoint, run, pick, count):
    path = checkpoint.parent / "run.yaml"
    path.write_text(json.dumps({"checkpoint": str(checkpoint / "gone"), "rank": 3, "out": "x"}))
    for what in json_files(path, pick, count):
        yield what, ["run", "--config", str(path), "--out", str(checkpoint / "out")]


FAMILIES = {
    attack_config: 150,
    attack_processor: 80,
    attack_weights: 80,
    attack_index: 60,
    attack_adapter: 60,
    attack_run_files: 60,
    attack_options: 60,
    attack_config_files: 50,
}


def faults_of(attack, count, checkpoint, run, seed):
    faults = []
    for what, words in attack(checkpoint, run, random.Random(seed), count):
        if wrong := outcome(words):
            faults.append(f"{what}: {wrong}")
        assert not (checkpoint / "out").exists(), what
    return faults


def test_there_are_enough():
    assert sum(FAMILIES.values()) >= 500


@pytest.mark.parametrize("attack", FAMILIES, ids=lambda one: one.__name__.removeprefix("attack_"))
def test_a_hostile_input_is_taken_or_refused_in_one_line(attack, checkpoint, run):
    faults = faults_of(attack, FAMILIES[attack], checkpoint, run, seed=0)
    assert not faults, "\n".join(faults[:5])


@pytest.mark.slow
@pytest.mark.parametrize("attack", FAMILIES, ids=lambda one: one.__name__.removeprefix("attack_"))
def test_many_hostile_inputs(attack, checkpoint, run):
    seed = int(os.environ.get("ATTACK_SEED", "1"))
    faults = faults_of(attack, 10 * FAMILIES[attack], checkpoint, run, seed)
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:20])


def test_a_pipe_or_device_is_not_waited_for(checkpoint, run, tmp_path):
    os.mkfifo(checkpoint / "tokenizer.json")
    assert outcome(["inspect", str(checkpoint)]) is None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words in (
        ["run", "--config", str(pipe), "--out", str(tmp_path / "o")],
        ["evaluate", str(run), "--vlm", "--questions", str(pipe)],
        ["run", "--checkpoint", str(pipe), "--out", str(tmp_path / "o")],
        ["run", "--config", "/dev/zero", "--out", str(tmp_path / "o")],
    ):
        assert outcome(words) is None
