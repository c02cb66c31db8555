"""Seeded changes of JSON trees, bytes and arrays."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np

from jax_unlearn.runtime.digests import DIGEST, sealed

NASTY = [
    None, True, False, -1, 0, 1, 3, 10**9, 2**40, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\n", "\x1b[31m", "é" * 40, "9" * 4000, [], [1], [None], [[]], {},
    {"a": 1}, [1] * 300, "/etc/passwd", "../x",
]  # fmt: skip
NO_JSON = ["", "[" * 100_000, "{", "[]", "null", "\x00", "9" * 5000, '{"a": 1e9999}', "\ufeff{}"]
DTYPES = [np.float32, np.float64, np.float16, np.int8, np.int64, np.bool_]


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
                # A copy, as the next change may be inside it.
                at[key] = deepcopy(pick.choice(NASTY))
            break
    return copy


def flipped(data: bytes, pick: random.Random) -> bytes:
    """Bytes with a few changed, or cut, or followed by others."""
    how = pick.random()
    if how < 0.2 or not data:
        return data[: pick.randrange(len(data) or 1)]
    if how < 0.3:
        return data + pick.randbytes(9)
    out = bytearray(data)
    for _ in range(pick.choice([1, 3, 20])):
        out[pick.randrange(min(len(out), pick.choice([16, 400, len(out)])))] = pick.randrange(256)
    return bytes(out)


def json_texts(text: str, pick: random.Random, count: int) -> Iterator[str]:
    """Variants of a JSON text; one in twelve is no JSON, or not what is expected at its top."""
    tree = json.loads(text)
    for number in range(count):
        if number % 12 == 0:
            yield pick.choice([*NO_JSON, text[:-2]])
        else:
            yield json.dumps(mutated(tree, pick))


def json_files(path: Path, pick: random.Random, count: int) -> Iterator[str]:
    """Write variants of a JSON file one after another; yields what each is, restores at the end."""
    original = path.read_text()
    for number, text in enumerate(json_texts(original, pick, count)):
        path.write_text(text)
        yield f"{path.name} {number}: {text[:300]}"
    path.write_text(original)


def resealed_files(path: Path, pick: random.Random, count: int) -> Iterator[str]:
    """As `json_files`, of a file with its own digest, which fits in half of the variants."""
    tree = json.loads(path.read_text())
    del tree[DIGEST]
    for what in json_files(path, pick, count):
        other = mutated(tree, pick)
        if pick.random() < 0.5 and isinstance(other, dict):
            with suppress(ValueError):  # It has a number that JSON has not.
                path.write_text(sealed(other))
                what = f"{path.name} with its digest: {path.read_text()[:300]}"
        yield what


def other_array(array: np.ndarray, pick: random.Random) -> np.ndarray:
    """An array of another shape or dtype, or with other values."""
    how = pick.randrange(5)
    if how == 0:
        return array.astype(pick.choice(DTYPES))
    if how == 1:
        return array.reshape(-1)[: pick.randrange(array.size + 1)]
    if how == 2:
        return np.expand_dims(array, 0)
    copy = array.copy().reshape(-1)
    if copy.size:
        value = pick.choice([0, -1, 1, 100]) if copy.dtype.kind in "biu" else pick.choice(
            [np.nan, np.inf, -np.inf, 1e30, -1, 0]
        )  # fmt: skip
        copy[pick.randrange(copy.size) if how == 3 else slice(None)] = value
    return copy.reshape(array.shape)
