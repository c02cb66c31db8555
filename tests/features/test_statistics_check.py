"""A statistics file whose digest fits and whose content does not is refused, and says where."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_unlearn.data.dataset import GROUPS
from jax_unlearn.features.statistics_file import FILE, read_statistics
from jax_unlearn.runtime.digests import DIGEST, of_arrays
from jax_unlearn.runtime.errors import UserError

FORGET = "forget.merger.linear_fc2"
TEST = "forget_held_out.merger.linear_fc2"


@pytest.fixture(scope="module")
def content(run):
    found = read_statistics(run)
    return found.arrays, found.facts


def write(directory, arrays, facts):
    digest = of_arrays(arrays, json.dumps(facts))
    save_file(arrays, directory / FILE, metadata={"facts": json.dumps({**facts, DIGEST: digest})})


def test_what_was_written_is_read(content, tmp_path):
    write(tmp_path, *content)
    assert read_statistics(tmp_path).facts == content[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (f"{FORGET}.x", lambda x: x[:, 1:], "is float32 of shape"),
        (f"{FORGET}.x", lambda x: x.astype(int), "is int64 of shape"),
        (f"{FORGET}.x", lambda x: x * np.nan, "has values that are not finite"),
        (f"{FORGET}.0.total", lambda x: x * 0 - 1e19, "not finite, or beyond 1e\\+18"),
        (f"{FORGET}.image", lambda x: x + 1, "does not number 8 samples in order"),
        (f"{TEST}.image", lambda x: x * 0, "does not number 2 samples in order"),
        (f"{FORGET}.0.image", lambda x: x - 1, "must be from 0 to 7"),
        (f"{FORGET}.0.count", lambda x: x * 0, "must be positive"),
        (f"{FORGET}.0.noise", lambda x: x - 1, "not negative"),
        (f"{FORGET}.0.by_image", lambda x: ~x, "by_image must be True"),
        ("path.merger.bias", lambda x: x[1:], "path.merger.bias is float32 of shape"),
        ("blank.merger", None, "there is no array blank.merger"),
        (f"{FORGET}.0.total", None, "there is no array"),
        (f"{FORGET}.0.total", lambda x: x.astype(np.float32), "is float32, and not float64"),
    ],
)
def test_an_array_that_does_not_fit_is_named(content, tmp_path, name, change, message):
    arrays = dict(content[0])
    value = arrays.pop(name)
    if change is not None:
        arrays[name] = np.ascontiguousarray(change(value))
    refused(tmp_path, arrays, content[1], message)


def refused(directory, arrays, facts, message):
    write(directory, arrays, facts)
    with pytest.raises(UserError, match=f"{FILE}: cannot be read .*{message}") as caught:
        read_statistics(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["paths"], [], "it has no projector"),
        (["paths"], ["merger", 1], "paths must be texts"),
        (["summed"], 10**9, "summed must be a list"),
        (["summed"], ["x"], "summed is"),
        (["samples"], -0.0, "samples must be an object"),
        (["samples", "forget"], True, "samples.forget is True"),
        (["samples", "fingerprint"], None, "samples.fingerprint must be texts"),
        (["samples"], {**dict.fromkeys(GROUPS, 1), "fingerprint": ""}, "samples has no skipped"),
        (["groups", "forget"], None, "groups.forget must be an object"),
        (["groups", "forget", "images", 0], ["x"], "images must be pairs"),
        (["groups", "forget", "images", 0, 0], "a\0", "images must be texts"),
        (["groups", "forget_held_out", "taps"], [], "taps has no"),
        (["groups", "forget_held_out", "taps", 0], "x", "'x' is no Linear of the file"),
        (["groups", "preserve_held_out", "images"], [["a", "b"]] * 3, "does not number 3 samples"),
        (["groups", "preserve_held_out", "images"], [["a", "b"]] * 5, "does not number 5 samples"),
    ],
)
def test_a_fact_that_does_not_fit_is_named(content, tmp_path, place, value, message):
    facts = copy.deepcopy(dict(content[1]))
    at = facts
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    refused(tmp_path, dict(content[0]), facts, message)
