"""LEACE against the authors' package, and against probes that are fitted after it."""

from copy import deepcopy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from concept_erasure import LeaceFitter
from peft import PeftModel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.leace import RowMoments, leace, reader
from porting import save_peft
from tests import tiny

D_IN, E = 12, 8
# n_f, n_p, the rank of the rows about their means, how far these are from the origin, E.
CASES = {
    "plain": (300, 500, D_IN, 0.0, E),
    "few to forget": (5, 3000, D_IN, 0.0, E),
    "few dimensions": (300, 500, 3, 0.0, E),
    "more outputs than inputs": (300, 500, D_IN, 0.0, 2 * D_IN),
    "fewer rows than outputs": (3, 3, D_IN, 0.0, E),
    "one row each": (1, 1, D_IN, 0.0, E),
    "large mean": (300, 500, D_IN, 1e3, E),
}


def drawn(n_forget, n_preserve, rank=D_IN, common=0.0, e=E, rows=0):
    """(weight, bias, forget, preserve), correlated; `rows` draws others of the same kind."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(rank, D_IN)) * np.geomspace(1, 0.1, rank)[:, None]
    apart = 2 * random.normal(size=rank) @ mixing
    middle = common * random.normal(size=D_IN)
    weight, bias = random.normal(size=(e, D_IN)), random.normal(size=e)
    random = np.random.default_rng([1, rows])
    forget, preserve = (random.normal(size=(n, rank)) @ mixing for n in (n_forget, n_preserve))
    return weight, bias, forget + apart + middle, preserve + middle


def moments(x):
    x = np.asarray(x, np.float64)
    return RowMoments(len(x), x.mean(axis=0), x.T @ x)


def outputs(weight, bias, forget, preserve, pair=None):
    """[n, E] of both sides, forget first, in float64; changed if there is a pair."""
    x = np.concatenate([forget, preserve])
    y = x @ weight.T + bias
    return y if pair is None else y + x @ pair.a.T @ pair.b.T + pair.bias


def labels(forget, preserve):
    return np.repeat([1.0, 0.0], [len(forget), len(preserve)])


def apart(y, z):
    return np.linalg.norm(y[z == 1].mean(axis=0) - y[z == 0].mean(axis=0))


def authors(y, z):
    # By default they keep what correlates with z by less than 0.01, as few rows among many do.
    return LeaceFitter.fit(torch.from_numpy(y), torch.from_numpy(z), svd_tol=1e-9).eraser


@pytest.mark.parametrize("case", CASES)
def test_the_projection_is_the_authors(case):
    weight, bias, *sides = drawn(*CASES[case])
    theirs = authors(outputs(weight, bias, *sides), labels(*sides)).P.numpy()
    forget, preserve = map(moments, sides)
    difference = weight @ (forget.mean - preserve.mean)
    both = forget.merged(preserve)
    v = reader(weight @ both.covariance() @ weight.T, difference, both.count)
    ours = np.eye(len(weight)) - np.outer(difference, v)
    # The square of a mean of a thousand deviations leaves ten digits.
    tolerance = 1e-7 if case == "large mean" else 1e-11
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_the_pair_does_what_the_authors_eraser_does(case):
    weight, bias, *sides = drawn(*CASES[case])
    y, z = outputs(weight, bias, *sides), labels(*sides)
    pair = leace(weight, *map(moments, sides))
    shapes = [(1, D_IN), (len(weight), 1), (len(weight),)]
    assert [part.shape for part in (pair.a, pair.b, pair.bias)] == shapes
    assert {part.dtype for part in (pair.a, pair.b, pair.bias)} == {np.dtype(np.float32)}
    theirs = authors(y, z)(torch.from_numpy(y)).numpy()
    ours = outputs(weight, bias, *sides, pair)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-7 * np.abs(y).max())
    assert np.abs(theirs - y).max() > 1e-4 * np.abs(y).max()


@pytest.mark.parametrize("case", CASES)
def test_nothing_correlates_with_the_side_any_more(case):
    weight, bias, *sides = drawn(*CASES[case])
    pair, z = leace(weight, *map(moments, sides)), labels(*sides)
    before, after = (outputs(weight, bias, *sides, pair) for pair in (None, pair))
    assert apart(before, z) > 1
    assert apart(after, z) < 1e-6 * apart(before, z)
    # Rounded to float32, the outputs themselves have no more than seven digits.
    lost = 1e-7 * np.abs(before).max()
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), rtol=0, atol=lost)


def test_a_probe_that_is_fitted_anew_is_at_chance():
    weight, bias, *sides = drawn(20000, 30000)
    pair = leace(weight, *map(moments, sides))
    scores = {}
    for name, made in {"before": None, "after": pair}.items():
        fitted, held_out = (drawn(4000, 6000, rows=rows)[2:] for rows in (1, 2))
        probe = LogisticRegression(class_weight="balanced", max_iter=1000)
        probe.fit(outputs(weight, bias, *fitted, made), labels(*fitted))
        guesses = probe.predict(outputs(weight, bias, *held_out, made))
        scores[name] = balanced_accuracy_score(labels(*held_out), guesses)
    assert scores["before"] > 0.95
    assert abs(scores["after"] - 0.5) < 0.02


def test_one_output_can_only_become_constant():
    """The authors' package leaves it as it was: there, its shrinkage divides zero by zero."""
    weight, bias, *sides = drawn(300, 500, e=1)
    before = outputs(weight, bias, *sides)
    after = outputs(weight, bias, *sides, leace(weight, *map(moments, sides)))
    np.testing.assert_allclose(after, np.full_like(after, before.mean()), rtol=0, atol=1e-5)


def test_a_small_difference_is_erased_too():
    weight, bias, forget, preserve = drawn(300, 500)
    forget = forget - forget.mean(axis=0) + preserve.mean(axis=0) + 1e-4
    pair, z = leace(weight, moments(forget), moments(preserve)), labels(forget, preserve)
    before, after = (outputs(weight, bias, forget, preserve, pair) for pair in (None, pair))
    assert 0 < apart(after, z) < 1e-3 * apart(before, z)


def test_weights_of_jax_will_do():
    weight, _, *sides = drawn(30, 50)
    ours = leace(jnp.asarray(weight, jnp.float32), *map(moments, sides))
    np.testing.assert_allclose(ours.b, leace(weight, *map(moments, sides)).b, rtol=1e-5, atol=1e-5)


def error_of(weight, forget, preserve):
    with pytest.raises(UserError) as caught:
        leace(weight, forget, preserve)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("common", [0.0, 1e3])
def test_the_same_rows_on_both_sides(common):
    weight, _, rows, _ = drawn(500, 1, common=common)
    again = (rows[::-1] * (1 + 1e-8)).astype(np.float32)
    for other in (rows, again):
        assert "have the same mean" in error_of(weight, moments(rows), moments(other))


def test_a_difference_that_the_weight_does_not_see():
    weight, _, rows, _ = drawn(500, 1)
    unseen = np.linalg.svd(weight)[2][-1]
    assert "have the same mean" in error_of(weight, moments(rows + unseen), moments(rows))


@pytest.mark.parametrize("side", ["forget", "preserve"])
def test_a_side_without_rows(side):
    weight, _, *rows = drawn(30, 50)
    both = dict(zip(("forget", "preserve"), map(moments, rows), strict=True))
    both[side] = RowMoments(0, np.zeros(D_IN), np.zeros((D_IN, D_IN)))
    assert f"no rows to {side}" in error_of(weight, **both)


def test_the_tower_and_peft(tiny_tower, tiny_model, tiny_dir, tmp_path):
    """Of real taps: no Merger's output tells the sides apart, in the tower and in PEFT's model."""
    sides = {"forget": tiny.images(seed=1) + 0.5, "preserve": tiny.images(seed=2)}
    seen = {side: tiny_tower(pixels, tiny.GRID) for side, pixels in sides.items()}
    pairs = {}
    for merger in tiny_tower.config.mergers:
        name = f"{merger}.linear_fc2"
        taps = {side: moments(features.taps[name]) for side, features in seen.items()}
        pairs[name] = leace(tiny_tower.linear(name)[0], **taps)
    adapter = LoraAdapter(pairs, alpha=1.0, rank=1)
    after = {side: tiny_tower(x, tiny.GRID, adapter=adapter) for side, x in sides.items()}
    for merger in tiny_tower.config.mergers:
        gaps = [
            np.linalg.norm(np.mean(f.outputs[merger] - p.outputs[merger], axis=0))
            for f, p in (tuple(features.values()) for features in (seen, after))
        ]
        assert gaps[0] > 1
        assert gaps[1] < 1e-5 * gaps[0]
    save_peft(adapter, tmp_path / "a", base_model_name_or_path=tiny_dir)
    theirs = PeftModel.from_pretrained(deepcopy(tiny_model), tmp_path / "a")
    visual = theirs.get_submodule("base_model.model.model.visual")
    for side, pixels in sides.items():
        tiny.same_features(after[side], tiny.tower_outputs(visual, pixels, tiny.GRID))
