"""The stand-in edit on synthetic rows whose right answer is known."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jax_unlearn.features.stand_in import Counterpart, TokenMoments
from jax_unlearn.models.lora import LoraPair
from jax_unlearn.objective import stand_in as matching
from jax_unlearn.objective.stand_in import StandInRows, match, other_words
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers import stand_in as solver
from jax_unlearn.solvers.leace import towards_identity
from jax_unlearn.solvers.stand_in import (
    SHRINKAGE,
    fit_stand_in,
    preserve_weight,
    principal,
    square_root,
    transport,
    with_bias,
    with_ones,
)

D, E = 24, 10
COUNT = 1500


class World:
    """Rows of a class with another mean and covariance, beside an attribute that both share."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        self.weight = random.normal(size=(E, D)).astype(np.float32) / np.sqrt(D)
        self.bias = random.normal(size=E).astype(np.float32)
        self.attribute = 3 * np.linalg.qr(random.normal(size=(D, 4)))[0].T
        mixing = random.normal(size=(2, D, D)) / np.sqrt(D)
        # The class's own spread and step lie outside of the attribute's directions.
        outside = np.eye(D) - self.attribute.T @ self.attribute / 9
        self.spread = [m @ outside for m in mixing]
        self.step = 2 * random.normal(size=D) @ outside

    def rows(self, is_forget, count, seed):
        """(rows [count, D], attribute [count] of four values)."""
        random = np.random.default_rng([seed, is_forget])
        values = random.integers(0, 4, count)
        x = self.attribute[values] + 0.5 * random.normal(size=(count, D)) @ self.spread[is_forget]
        return (x + is_forget * self.step).astype(np.float32), values

    def output(self, x):
        return x @ self.weight.T + self.bias

    def projector(self, forget, stand_in, tokens=None):
        goal = stand_in[match([self.output(forget)], [self.output(stand_in)])]
        keep = with_ones(stand_in)
        gram = keep.T @ keep / len(keep)
        return StandInRows(self.weight, self.bias, forget, goal, stand_in, gram, len(keep), tokens)


def changed(world, pair, x):
    return world.output(x) + (x @ pair.a.T) @ pair.b.T + pair.bias


def edit(world, rounds=12, preserve=0.1, rank=E):
    forget, _ = world.rows(1, COUNT, 1)
    stand_in, _ = world.rows(0, COUNT, 2)
    result = fit_stand_in([{"w": world.projector(forget, stand_in)}], rank, preserve, rounds)
    return result, result.adapter.pairs["w"]


def attribute_kept(world, pair):
    """Share of fresh forget rows whose attribute a classifier fitted on stand-in rows reads."""
    stand_in, values = world.rows(0, COUNT, 3)
    centres = np.stack([world.output(stand_in[values == v]).mean(axis=0) for v in range(4)])
    fresh, right = world.rows(1, COUNT, 4)
    far = ((changed(world, pair, fresh)[:, None] - centres) ** 2).sum(axis=-1)
    return float((far.argmin(axis=1) == right).mean())


def test_fresh_rows_have_the_mean_and_covariance_of_the_stand_in():
    world = World()
    _, pair = edit(world)
    fresh, goal = world.rows(1, 4000, 5)[0], world.rows(0, 4000, 6)[0]
    after, wanted, before = changed(world, pair, fresh), world.output(goal), world.output(fresh)
    # Means of 1,500 and 4,000 rows differ by chance in about 3 % of their spread.
    spread = wanted.std(axis=0)
    assert np.abs((after.mean(axis=0) - wanted.mean(axis=0)) / spread).max() < 0.15
    assert np.abs((before.mean(axis=0) - wanted.mean(axis=0)) / spread).max() > 0.5
    size = np.linalg.norm(np.cov(wanted.T))
    missed = np.linalg.norm(np.cov(after.T) - np.cov(wanted.T)) / size
    assert missed < 0.1 < np.linalg.norm(np.cov(before.T) - np.cov(wanted.T)) / size
    assert attribute_kept(world, pair) > 0.95


def test_without_rounds_the_cloud_shrinks():
    world = World()
    variances = {}
    fresh, goal = world.rows(1, 4000, 5)[0], world.output(world.rows(0, 4000, 6)[0])
    for rounds in (0, 12):
        _, pair = edit(world, rounds)
        variances[rounds] = np.trace(np.cov(changed(world, pair, fresh).T)) / np.trace(
            np.cov(goal.T)
        )
    assert variances[0] < 0.93
    assert abs(variances[12] - 1) < 0.05


def test_a_match_that_is_not_centred_loses_the_attribute(monkeypatch):
    world = World()
    own = world.rows(1, COUNT, 1), world.rows(0, COUNT, 2)

    def same_attribute():
        outputs = [[world.output(x)] for x, _ in own]
        return float((own[1][1][match(*outputs)] == own[0][1]).mean())

    centred = same_attribute()

    def uncentred(forget, stand_in, *_):
        # The step of the class is a part of what is compared.
        return np.concatenate(forget, axis=1), np.concatenate(stand_in, axis=1)

    monkeypatch.setattr(matching, "context", uncentred)
    assert same_attribute() < centred - 0.05
    assert centred > 0.97


def test_images_are_matched_within_groups_whose_names_agree():
    random = np.random.default_rng(0)
    # Each of four classes of both sides is at a place of its own: colours have nothing in common.
    places = 10 * random.normal(size=(2, 4, 6))
    colours = np.repeat(np.arange(4), 30)
    own, theirs = (place[colours] + 0.1 * random.normal(size=(120, 6)) for place in places)
    names = np.array(["red", "blue", "teal", "gray"])[colours]
    grouped = match([own], [theirs], names, names)
    assert (colours[grouped] == colours).all()
    assert (colours[match([own], [theirs])] == colours).mean() < 0.9
    # A group with few stand-in images uses each of them more often; one with none takes any.
    for left in (5, 0):
        few = np.delete(np.arange(120), np.arange(left, 30))
        fewer = match([own], [theirs[few]], names, names[few])
        assert (colours[few][fewer] == colours).mean() == (1.0 if left else 0.75)


def test_the_other_words_of_classes_are_groups():
    colours = Counterpart("triangle", (), "circle", ())
    forget, kept = (np.array([f"{c} {s}" for c in ("red", "blue")]) for s in ("triangle", "circle"))
    assert [list(words) for words in other_words(colours, forget, kept)] == [["red", "blue"]] * 2
    # Not where a class to forget has no class of the same words.
    assert [list(words) for words in other_words(colours, forget, kept[:1])] == [["", ""], [""]]


def test_each_stand_in_image_is_used_a_limited_number_of_times():
    random = np.random.default_rng(0)
    forget, stand_in = random.normal(size=(50, 6)), random.normal(size=(20, 6))
    counts = np.bincount(match([forget], [stand_in]), minlength=20)
    # Three on average, rounded up, and twice that at most.
    assert counts.sum() == 50
    assert counts.max() <= 6


def test_equal_images_are_matched_without_a_division_by_zero():
    same = [np.ones((5, 4))]
    assert set(match(same, same)) <= set(range(5))


def test_transport_maps_one_covariance_to_the_other():
    random = np.random.default_rng(0)
    start, goal = (np.cov(random.normal(size=(200, 6)).T * (1.0 + np.arange(6))[:, None] ** k)
                   for k in (1, -1))  # fmt: skip
    a = transport(start, square_root(goal))
    s, g = (towards_identity(one, SHRINKAGE) for one in (start, goal))
    np.testing.assert_allclose(a @ s @ a, g, atol=1e-10)
    np.testing.assert_allclose(a, a.T, atol=1e-12)


def test_a_change_of_less_rank_is_the_best_in_the_metric_of_the_ridge():
    world = World()
    (full, _), (cut, _) = edit(world, rank=E), edit(world, rank=3)
    assert (full.adapter.rank, cut.adapter.rank) == (E, 3)
    rows = world.projector(world.rows(1, COUNT, 1)[0], world.rows(0, COUNT, 2)[0])
    lower = np.tril(solver.Ridge([rows], 0.1).factor[0])
    whole, less = (lower.T @ with_bias(r.adapter.pairs["w"]) for r in (full, cut))
    u, s, v = np.linalg.svd(whole)
    best = u[:, :3] * s[:3] @ v[:3]
    np.testing.assert_allclose(less, best, atol=1e-4 * s[0])


def test_token_deviations_get_the_covariance_of_the_stand_ins():
    world = World()
    random = np.random.default_rng(9)
    mixes = [random.normal(size=(D, D)) / np.sqrt(D) for _ in range(3)]
    r_f, r_g, r_p = (random.normal(size=(6000, D)) @ m for m in mixes)
    moments = TokenMoments(
        *(r.T @ r / len(r) for r in (r_f, r_g)), r_f.T @ r_g / len(r_f), r_p.T @ r_p / len(r_p)
    )
    forget, stand_in = world.rows(1, COUNT, 1)[0], world.rows(0, COUNT, 2)[0]
    missed = {}
    for tokens in (None, moments):
        rows = world.projector(forget, stand_in, tokens)
        pair = fit_stand_in([{"w": rows}], E, 0.1).adapter.pairs["w"]
        whole = world.weight + pair.b @ pair.a
        fresh = random.normal(size=(6000, D)) @ mixes[0]
        wanted = np.cov(world.weight @ r_g.T)
        missed[tokens is None] = np.linalg.norm(np.cov(whole @ fresh.T) - wanted)
    assert missed[False] < 0.3 * missed[True]


def test_in_leading_components_only_what_lies_in_them_is_moved(monkeypatch):
    world = World()
    _, exact = edit(world)
    monkeypatch.setattr(solver, "COMPONENTS", E - 1)
    _, near = edit(world)
    change, other = (with_bias(pair) for pair in (exact, near))
    assert 1e-6 < np.linalg.norm(change - other) / np.linalg.norm(change) < 0.2


@pytest.mark.parametrize("shape", [(30, 8), (6, 40)])
def test_principal_components_are_orthonormal_and_span_the_rows(shape, monkeypatch):
    monkeypatch.setattr(solver, "COMPONENTS", 7)
    rows = np.random.default_rng(0).normal(size=shape)
    rows -= rows.mean(axis=0)
    basis = principal(rows)
    assert basis.shape[1] == min(7, shape[0] - 1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)
    kept = np.linalg.svd(rows, compute_uv=False)[: basis.shape[1]]
    np.testing.assert_allclose(np.linalg.norm(rows @ basis), np.linalg.norm(kept))


def test_several_concepts_are_solved_together_in_any_order():
    """Two concepts that lie beside each other are not moved twice."""
    world = World()
    random = np.random.default_rng(3)
    beside = (0.3 * random.normal(size=D)).astype(np.float32)
    stand_in = world.rows(0, 600, 20)[0]
    forget = [world.rows(1, 600, 10 + number)[0] + number * beside for number in range(2)]
    concepts = [{"w": world.projector(own, stand_in)} for own in forget]
    both, swapped = (
        fit_stand_in(own, 4, 0.1).adapter.pairs["w"] for own in (concepts, concepts[::-1])
    )
    np.testing.assert_allclose(with_bias(both), with_bias(swapped), atol=1e-5)
    alone = [fit_stand_in([one], 4, 0.1).adapter.pairs["w"] for one in concepts]
    added = LoraPair(
        np.concatenate([p.a for p in alone]),
        np.concatenate([p.b for p in alone], axis=1),
        alone[0].bias + alone[1].bias,
    )
    goal = world.output(stand_in).mean(axis=0)
    for own in forget:
        before, after, twice = (
            np.linalg.norm(outputs.mean(axis=0) - goal)
            for outputs in (
                world.output(own),
                changed(world, both, own),
                changed(world, added, own),
            )
        )
        assert after < 0.15 * before < 0.5 * twice


def test_small_matrices_are_solved_by_one_thread():
    world, seen = World(), set()
    rows = world.projector(world.rows(1, 40, 1)[0], world.rows(0, 40, 2)[0])

    def look(_):
        # Those of NumPy and SciPy; other tests load PyTorch's.
        pools = [pool for pool in threadpool_info() if pool["internal_api"] == "openblas"]
        seen.update(pool["num_threads"] for pool in pools)

    with threadpool_limits(2, user_api="blas"):
        fit_stand_in([{"w": rows}], 2, 0.1, 1, look)
    assert seen == {1}


def test_one_image_has_no_spread_to_move():
    world = World()
    rows = world.projector(world.rows(1, 1, 1)[0], world.rows(0, 40, 2)[0])
    pair = fit_stand_in([{"w": rows}], 2, 0.1).adapter.pairs["w"]
    assert np.isfinite(with_bias(pair)).all()


def test_the_history_tells_how_far_rows_are_from_their_targets():
    result, pair = edit(World(), rank=4)
    start, end = result.history
    assert (start["preserve"], start["weight"]) == (0.0, 0.0)
    assert end["forget"] < 0.2 * start["forget"]
    assert end["weight"] == pytest.approx(np.linalg.norm(pair.b @ pair.a), rel=1e-5)


def test_only_the_ratio_of_the_weights_counts():
    assert preserve_weight(2.0, 6.0) == 3.0
    with pytest.raises(UserError, match="--lambda-forget 0: must be above 0"):
        preserve_weight(0.0, 1.0)
