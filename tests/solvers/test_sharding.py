"""Training with the rows over several devices: the adapter of one."""

import jax
import numpy as np

from jax_unlearn import train
from jax_unlearn.runtime.mesh import make_mesh
from jax_unlearn.solvers.adam.loop import run_chunk
from jax_unlearn.solvers.adam.sharding import shard_rows
from tests import problems
from tests.objective.test_merger import BOTH, Case
from tests.problems import published
from tests.running import on_eight_devices

# Neither is a multiple of eight.
ROWS = {"n_forget": 21, "n_preserve": 13}


def same(problem, held_out=None, **settings):
    config = published(rank=3, epochs=40, chunk=10, **settings)
    alone = train(problem, config, held_out=held_out)
    run_chunk.clear_cache()
    many = train(problem, config, held_out=held_out, mesh=make_mesh("data=4,fsdp=2"))
    assert run_chunk._cache_size() == 1
    assert many.epoch == alone.epoch > 0
    for ours, theirs in zip(*(jax.tree.leaves(r.adapter) for r in (many, alone)), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    for ours, theirs in zip(many.history, alone.history, strict=True):
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)


def check_training():
    # The mean of rows is their sum's norm, over their number without what fills the shares.
    same(problems.problem(**ROWS), reduction="mean")
    # Statistics in place of the rows, and a choice by held-out ones.
    many = problems.problem(n_forget=60, n_preserve=50)
    same(many, held_out=many, select="held_out")
    same(Case("images").problem(BOTH), reduction="mean")


def check_shares():
    (name, part), *_ = problems.problem(**ROWS).items()
    found = shard_rows({name: part}, make_mesh(None))[name]
    for rows, share in ((found.forget, 3), (found.residual, 3), (found.preserve, 2)):
        assert {shard.data.shape[0] for shard in rows.addressable_shards} == {share}
    assert (found.forget_rows, found.preserve_rows) == (21, 13)
    np.testing.assert_array_equal(found.residual[:21], part.residual)
    assert not np.any(found.residual[21:])


def check_devices():
    check_shares()
    check_training()


def test_eight_devices_have_their_shares_of_the_rows_and_give_the_adapter_of_one():
    """In one process, for its start takes longer than the shares."""
    on_eight_devices(check_devices)


def test_one_device_keeps_the_problem_as_it_is():
    problem = problems.problem()
    assert shard_rows(problem, None) is problem
    assert shard_rows(problem, make_mesh("data=1")) is problem
