"""Every public function takes whatever is an array, and names an argument that it cannot take."""

import re
import shutil
from functools import partial
from inspect import isfunction, signature
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jax_unlearn
import porting
from jax_unlearn import LoraAdapter, LoraPair, SolverConfig, UserError, linear_problem
from jax_unlearn.runtime.assets import CLIP_ASSETS
from tests import tiny

REFUSALS = (UserError, ValueError, TypeError)
DTYPES = (np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_, ml_dtypes.bfloat16)
E, D, N, H = 3, 4, 5, 6
# What each array may be, beside its right shape.
SHAPES = [(), (1,), (D,), (D, E), (N, D, 1), (0, D)]
NO_ARRAYS = [
    None, "x", "", b"x", "a\nb", {}, {"a": 1}, set(), object(), 1j, [], [[1.0], [1.0, 2.0]], "1",
    np.array(["a"]), np.array([None]), np.ones((N, D), complex), slice(None), int, Path("nowhere"),
]  # fmt: skip
# In place of a path, an adapter, a problem or a setting.
ODD = [None, 3, -1, 1.5, True, (), [], {}, {"a": 1}, object(), b"x", np.ones(3), "nowhere"]


@pytest.fixture(autouse=True)
def as_for_users(tmp_path, monkeypatch):
    """Without the checks of types that only the tests have, and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def forms(shape):
    """Arrays of a shape in every form that a caller may have."""
    plain = np.arange(1, 1 + int(np.prod(shape, dtype=int))).reshape(shape) / 8
    return st.sampled_from(
        [
            plain.tolist(),
            *(plain.astype(dtype) for dtype in DTYPES),
            jnp.asarray(plain, jnp.float32),
            jnp.asarray(plain, jnp.bfloat16),
            torch.tensor(plain),
            torch.tensor(plain, dtype=torch.bfloat16, requires_grad=True),
            torch.tensor(plain).long(),
            plain.T.copy().T,
        ]
    )


def shape_of(value):
    """The shape of an array of numbers; None of anything else."""
    try:
        found = np.asarray(value.detach().float() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    numeric = found.dtype.kind in "biuf" or found.dtype == ml_dtypes.bfloat16
    return list(found.shape) if numeric else None


def tokens(rows=None):
    """Tokens of the merger's first Linear."""
    return jax_unlearn.merger_tokens(np.ones((H, D)), np.ones(H), np.ones((N, D)), rows)


# Functions of arrays, with the shape of each.
ARRAYS = {
    jax_unlearn.linear_problem: {
        "weight": (E, D), "bias": (E,), "forget": (N, D), "target": (N, E), "preserve": (2, D),
    },
    jax_unlearn.merger_tokens: {"weight": (H, D), "bias": (H,), "x": (N, D)},
    partial(jax_unlearn.merger_problem, forget=tokens(), preserve=tokens()): {
        "weight": (E, H), "bias": (E,), "target": (N, E),
    },
}  # fmt: skip
CASES = [(function, name) for function, shapes in ARRAYS.items() for name in shapes]


def name_of(function):
    return getattr(function, "func", function).__name__


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(CASES), st.data())
def test_an_array_of_any_form_is_taken_or_named(case, data):
    function, name = case
    shapes = ARRAYS[function]
    arguments = {one: np.ones(shape, np.float32) for one, shape in shapes.items()}
    right = forms(shapes[name])
    wrong = st.one_of(st.sampled_from(SHAPES).flatmap(forms), st.sampled_from(NO_ARRAYS))
    value = data.draw(st.one_of(right, wrong))
    arguments[name] = value
    shape = shape_of(value)
    # A number is a bias, and there may be none.
    expected = shape == list(shapes[name]) or (name == "bias" and (value is None or shape == []))
    # Any number of rows, as long as it is that of the others.
    free = {"preserve", "x"} & {name}
    expected |= bool(free) and shape is not None and len(shape) == 2 and shape[1] == D
    result, error = attempt(function, arguments)
    assert (error is None) == expected, (name_of(function), name, value, error)
    if error is None:
        leaves = [leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype")]
        assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in leaves)
        return
    # Another weight may be right, and the rows wrong.
    said(error, *(shapes if name in ("weight", "forget") else [name]))
    if shape is not None and name in str(error):
        assert str(shape) in str(error)
        assert "expected" in str(error)


def attempt(function, arguments):
    """(result, None) of a call, or (None, the error that it raised)."""
    try:
        return function(**arguments), None
    except REFUSALS as error:
        return None, error


def said(error, *names):
    """The error is one line that has one of the names."""
    assert "\n" not in str(error), error
    assert any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names), error


PAIR = LoraPair(np.ones((1, 128), np.float32), np.ones((24, 1), np.float32))
PROBLEM = {"x": linear_problem(np.eye(3), None, np.ones((2, 3)), np.zeros((2, 3)), np.eye(3))}
SMALL = SolverConfig(rank=1, epochs=2, iterations=2, chunk=1)


def calls(checkpoint, tower, place):
    """Each public function with arguments that it takes, but for what is missing in `place`."""
    adapter, out = tiny.adapter(), place / "out"
    clip = CLIP_ASSETS / "checkpoint"
    return {
        jax_unlearn.solve: {"problem": PROBLEM, "config": SMALL, "held_out": PROBLEM},
        jax_unlearn.train: {"problem": PROBLEM, "config": SMALL, "held_out": None, "init": None},
        jax_unlearn.unlearn: {
            "checkpoint": checkpoint, "out": out, "forget": place / "a", "preserve": place / "b",
        },
        porting.is_clip: {"checkpoint_dir": checkpoint},
        porting.linear_digests: {
            "checkpoint_dir": checkpoint, "linears": ["merger.linear_fc2"],
        },
        porting.load_clip: {"checkpoint_dir": clip, "dtype": "float32"},
        porting.load_peft: {"adapter_dir": place / "adapter"},
        porting.load_vision_tower: {"checkpoint_dir": checkpoint, "dtype": "float32"},
        porting.merge_checkpoint: {
            "adapter": adapter, "checkpoint_dir": checkpoint, "out_dir": out,
            "undo": place / "new",
        },
        porting.save_peft: {
            "adapter": adapter, "out_dir": out, "base_model_name_or_path": checkpoint,
        },
        porting.to_torch: {"model": tower, "model_type": "qwen3_vl"},
        porting.unmerge_checkpoint: {
            "merged_dir": place / "merged", "undo": place / "undo", "out_dir": out,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny_dir, tmp_path_factory):
    """A folder with a merged checkpoint, its undo file and an adapter."""
    path = tmp_path_factory.mktemp("place")
    porting.merge_checkpoint(tiny.adapter(), tiny_dir, path / "merged", undo=path / "undo")
    porting.save_peft(tiny.adapter(), path / "adapter", base_model_name_or_path=tiny_dir)
    return path


def test_every_public_function_is_tried():
    tried = {name_of(function) for function in [*ARRAYS, *calls(*map(Path, "abc"))]}
    public = {
        name
        for module in (jax_unlearn, porting)
        for name in module.__all__
        if isfunction(getattr(module, name))
    }
    assert public == tried


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_an_argument_of_another_type_is_named(tiny_dir, tiny_tower, place, data):
    every = calls(tiny_dir, tiny_tower, place)
    function = data.draw(st.sampled_from([*every]), label="function")
    arguments = every[function]
    name = data.draw(st.sampled_from([*arguments]), label="argument")
    value = data.draw(st.sampled_from(ODD), label="value")
    optional = signature(function).parameters[name].default
    for left in (Path("nowhere"), place / "out", place / "new"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    _, error = attempt(function, arguments | {name: value})
    if error is not None:
        # Or what was given, as a path that does not exist, or a name of a Linear.
        given = value if isinstance(value, str) else "a" if isinstance(value, dict) else name
        said(error, name, given)
    else:
        empty = name == "linears" and len(value) == 0
        written = name in ("out_dir", "undo", "base_model_name_or_path") and value == "nowhere"
        assert value is optional or empty or written, (function, name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "x"}, r"\.a is not an array of numbers"),
        ({"a": np.ones((2, 128))}, r" has rank \[1, 2\], the adapter 1"),
        ({"a": np.ones((1, 7))}, r".weight has shape .*the adapter's b @ a \[24, 7\]"),
        ({"b": np.ones(24)}, r"\.b has shape \[24\], expected \[E, rank\]"),
        ({"b": None}, r"\.b is not an array of numbers"),
        ({"bias": np.ones(3)}, r" has a bias of shape \[3\], expected \[24\]"),
    ],
)
@pytest.mark.parametrize("function", [porting.save_peft, porting.merge_checkpoint])
def test_an_adapter_with_other_arrays_is_named(function, change, message, tiny_dir, tmp_path):
    pair = LoraPair(**vars(PAIR) | change)
    adapter = LoraAdapter({"merger.linear_fc2": pair}, alpha=1.0, rank=1)
    arguments = dict.fromkeys(("checkpoint_dir", "base_model_name_or_path"), tiny_dir)
    known = {k: v for k, v in arguments.items() if k in signature(function).parameters}
    with pytest.raises(REFUSALS, match=f"merger.linear_fc2.*{message}"):
        function(adapter=adapter, out_dir=tmp_path / "out", **known)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_any_arrays_is_taken(tiny_dir, tmp_path):
    wanted = None
    for number, form in enumerate((np.asarray, jnp.asarray, torch.tensor, np.ndarray.tolist)):
        pair = LoraPair(form(PAIR.a), form(PAIR.b))
        adapter = LoraAdapter({"merger.linear_fc2": pair}, alpha=1, rank=1)
        porting.save_peft(adapter, tmp_path / str(number), base_model_name_or_path=tiny_dir)
        found = (tmp_path / str(number) / "adapter_model.safetensors").read_bytes()
        wanted = wanted or found
        assert found == wanted
