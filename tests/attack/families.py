"""Families of hostile inputs: each yields commands, one after another, over files that it damages.

The files are restored when a family ends.
"""

import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save_file

from jax_unlearn.features.statistics_file import FILE as STATISTICS
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.digests import DIGEST, FILE, of_arrays, of_file, read_sealed, sealed
from jax_unlearn.runtime.snapshots import Snapshot
from jax_unlearn.runtime.used_if import leaf_fields, option
from tests.attack.mutations import (
    flipped,
    json_files,
    json_texts,
    mutated,
    other_array,
    resealed_files,
)
from tests.attack.outcomes import Attack
from tests.attack.place import STOPPED, Attacks, Place, fit_again, own_copy
from tests.attack.records import attacks_file, certificate, ledger

HELD_BACK = {"out", "overwrite", "resume", "distributed"}
VALUES = [
    "", "-1", "0", "nan", "inf", "1e999", "9" * 400, "x", "None", "/dev/null", "\x1b[31m", "é",
]  # fmt: skip
INDEX_NAMES = ["/etc/passwd", "../a.safetensors", "x" * 300, "", ".", "..", "a/b", "\x00", "a\n"]


Family = Callable[[Place, random.Random, int], Attacks]


def config(place: Place, pick: random.Random, count: int) -> Attacks:
    for what in json_files(place.checkpoint / "config.json", pick, count):
        yield Attack(what, ["inspect", str(place.checkpoint)])


def processor(place: Place, pick: random.Random, count: int) -> Attacks:
    for what in json_files(place.checkpoint / "preprocessor_config.json", pick, count):
        yield Attack(what, ["inspect", str(place.checkpoint)])


def weights(place: Place, pick: random.Random, count: int) -> Attacks:
    """Flipped bytes, most of them in the header of the safetensors file."""
    path = place.checkpoint / "model.safetensors"
    original = path.read_bytes()
    for number in range(count):
        path.write_bytes(flipped(original, pick))
        yield Attack(f"weights {number}", ["inspect", str(place.checkpoint)])
    path.write_bytes(original)


def headers(place: Place, pick: random.Random, count: int) -> Attacks:
    """Valid JSON headers that describe other tensors than the file holds."""
    path = place.checkpoint / "model.safetensors"
    original = path.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    for number, text in enumerate(json_texts(original[8:end].decode(), pick, count)):
        header = text.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + original[end:])
        yield Attack(f"header {number}", ["inspect", str(place.checkpoint)])
    path.write_bytes(original)


def index(place: Place, pick: random.Random, count: int) -> Attacks:
    file = place.checkpoint / "model.safetensors"
    shard = file.rename(place.checkpoint / "a.safetensors")
    path = place.checkpoint / "model.safetensors.index.json"
    content = {"weight_map": {"model.visual.x": "a.safetensors"}, "metadata": {}}
    path.write_text(json.dumps(content))
    for what in json_files(path, pick, count):
        if pick.random() < 0.5:
            path.write_text(json.dumps({"weight_map": {"a": pick.choice(INDEX_NAMES)}}))
        yield Attack(what, ["inspect", str(place.checkpoint)])
    path.unlink()
    shard.rename(file)


def adapter(place: Place, pick: random.Random, count: int) -> Attacks:
    """The two files of an adapter, with a digest that fits in half of them."""
    with own_copy(place.run, place) as copy:
        words = ["export", str(copy), "--out", str(place.out)]
        name = "adapter/adapter_config.json"
        for what in json_files(copy / name, pick, count // 2):
            yield Attack(what + forged(copy, name, pick), words, place.out)
        name = "adapter/adapter_model.safetensors"
        original = (copy / name).read_bytes()
        for number in range(count - count // 2):
            (copy / name).write_bytes(flipped(original, pick))
            yield Attack(f"adapter {number}{forged(copy, name, pick)}", words, place.out)


def run_files(place: Place, pick: random.Random, count: int) -> Attacks:
    """config.json and metrics.json of a run, with a digest that fits in half of them."""
    with own_copy(place.run, place) as copy:
        words = ["export", str(copy), "--out", str(place.out)]
        for what in json_files(copy / "config.json", pick, count // 2):
            yield Attack(what + forged(copy, "config.json", pick), words, place.out)
        for what in resealed_files(copy / "metrics.json", pick, count - count // 2):
            yield Attack(what, words, place.out)


def forged(run: Path, name: str, pick: random.Random) -> str:
    """Give a file of a run a digest that fits, at times; says so."""
    path = run / FILE
    stored = read_sealed(path)
    if fits := pick.random() < 0.5:
        stored["files"][name] = of_file(run / name)
        path.write_text(sealed(stored))
    return ", with its digest" if fits else ""


def options(place: Place, pick: random.Random, count: int) -> Attacks:
    names = sorted(set(leaf_fields(RunConfig)) - HELD_BACK)
    words = ["run", "--checkpoint", str(place.checkpoint / "gone"), "--out", str(place.out)]
    for number in range(count):
        name, value = pick.choice(names), pick.choice(VALUES)
        what = f"option {number}: {name} {value!r}"
        yield Attack(what, [*words, option(name), value], place.out)


def settings_files(place: Place, pick: random.Random, count: int) -> Attacks:
    path = place.scratch / "run.yaml"
    gone = str(place.checkpoint / "gone")
    path.write_text(json.dumps({"checkpoint": gone, "rank": 3, "out": "x"}))
    words = ["run", "--config", str(path), "--out", str(place.out)]
    for what in json_files(path, pick, count):
        yield Attack(what, words, place.out)
    path.unlink()


def statistics(place: Place, pick: random.Random, count: int) -> Attacks:
    """Damaged bytes, which must not change a result; other content with a digest that fits."""
    with own_copy(place.run, place) as copy:
        path = copy / STATISTICS
        original = path.read_bytes()
        arrays, facts = contents_of(path)
        words = fit_again(place, copy, *STOPPED)
        for number in range(count):
            if number % 2:
                path.write_bytes(flipped(original, pick))
                yield Attack(f"statistics {number}", words, place.out, place.whole)
                continue
            others, told = dict(arrays), dict(facts)
            if pick.random() < 0.5:
                name = pick.choice(sorted(arrays))
                others[name] = other_array(arrays[name], pick)
                what = f"{name} {others[name].dtype} {others[name].shape}"
            else:
                told = mutated(facts, pick)
                what = json.dumps(told)[:300]
            write_statistics(path, others, told)
            yield Attack(f"statistics with their digest {number}: {what}", words, place.out)


def requests_in_statistics(place: Place, pick: random.Random, count: int) -> Attacks:
    """Other requests in the statistics of a ledger's run, with a digest that fits."""
    with own_copy(place.solved, place) as copy:
        path = copy / STATISTICS
        arrays, facts = contents_of(path)
        for number in range(count):
            others, told = dict(arrays), dict(facts)
            if number % 2:
                name = pick.choice(["requests.train", "requests.test"])
                others[name] = other_array(arrays[name], pick)
                what = f"{name} {others[name].dtype} {others[name].shape}"
            else:
                told["requests"] = mutated(facts["requests"], pick)
                what = json.dumps(told["requests"])
            write_statistics(path, others, told)
            yield Attack(f"requests {number}: {what}", fit_again(place, copy), place.out)


def contents_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and facts of a statistics file."""
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["facts"])


def write_statistics(path: Path, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a statistics file with a digest that fits."""
    told = {name: value for name, value in facts.items() if name != DIGEST}
    told[DIGEST] = of_arrays(arrays, json.dumps(told))
    save_file(arrays, path, metadata={"facts": json.dumps(told)})


def snapshots(place: Place, pick: random.Random, count: int) -> Attacks:
    """Damage to one file of OUT.resume, also with a digest that fits; the result is the same."""
    resume = place.out.with_name(f"{place.out.name}.resume")
    for number in range(count):
        shutil.copytree(place.stopped, resume)
        files = sorted(path for path in resume.rglob("*") if path.is_file())
        path = pick.choice(files)
        data = path.read_bytes()
        if path.name == "snapshot" and pick.random() < 0.4:
            found = Snapshot.of_bytes(data)
            # A fact is wrong only if it was forged: no digest can show that.
            path.write_bytes(Snapshot(found.arrays, found.facts | {"more": 1}).to_bytes())
        else:
            path.write_bytes(flipped(data, pick))
        if pick.random() < 0.1:
            path.unlink()
        what = f"snapshot {number}: {path.relative_to(resume)}"
        words = fit_again(place, place.run, *STOPPED, "--resume")
        yield Attack(what, words, place.out, place.whole)
        shutil.rmtree(resume, ignore_errors=True)


def tars(place: Place, pick: random.Random, count: int) -> Attacks:
    """Damaged tar archives of images, plain and compressed, beside good images."""
    preserve = place.scratch / "preserve"
    shutil.copytree(place.images / "preserve", preserve)
    images = sorted((place.images / "preserve").rglob("*.png"))[:6]
    words = [
        *("run", "--checkpoint", str(place.checkpoint), "--preserve", str(preserve)),
        *("--forget", str(place.images / "forget"), "--out", str(place.out)),
        *("--max-pixels", "512"),
    ]
    for number in range(count):
        suffix, mode = pick.choice([("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")])
        path = preserve / f"shard.{suffix}"
        with tarfile.open(path, mode) as tar:
            for image in images:
                tar.add(image, f"{pick.choice(['a', 'b'])}/{image.name}")
        path.write_bytes(damaged_tar(path.read_bytes(), pick))
        yield Attack(f"{path.name} {number}", words, place.out)
        path.unlink()
    shutil.rmtree(preserve)


def damaged_tar(data: bytes, pick: random.Random) -> bytes:
    """Bytes changed anywhere or in one header, or a header whose sum is right again."""
    if pick.random() < 0.4 or len(data) < 2048:
        return flipped(data, pick)
    out = bytearray(data)
    at = 512 * pick.randrange(len(out) // 512)
    field, size = pick.choice([(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100)])
    out[at + field : at + field + size] = pick.choice(
        [pick.randbytes(size), b"\x80" + b"\xff" * (size - 1), b"7" * size, b"\0" * size]
    )
    if pick.random() < 0.2:
        # An extended header, of any size that it claims.
        out[at + 124 : at + 136] = b"\x80" + pick.choice([2**33, 2**60]).to_bytes(11, "big")
        out[at + 156 : at + 157] = pick.choice([b"x", b"g", b"L", b"S"])
    block = bytes(out[at : at + 148]) + b" " * 8 + bytes(out[at + 156 : at + 512])
    out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def questions(place: Place, pick: random.Random, count: int) -> Attacks:
    path = place.scratch / "questions.json"
    content = [{"question": "what?", "answers": {"red triangle": "x", "astronaut": "y"}}] * 2
    path.write_text(json.dumps(content))
    for what in json_files(path, pick, count):
        yield Attack(what, ["evaluate", str(place.run), "--vlm", "--questions", str(path)])
    path.unlink()


# How many inputs a quick test makes of each.
FAMILIES: dict[Family, int] = {
    config: 80,
    processor: 40,
    weights: 45,
    headers: 35,
    index: 40,
    adapter: 40,
    run_files: 45,
    options: 45,
    settings_files: 35,
    statistics: 28,
    requests_in_statistics: 12,
    snapshots: 10,
    tars: 8,
    questions: 22,
    attacks_file: 20,
    certificate: 20,
    ledger: 36,
}
