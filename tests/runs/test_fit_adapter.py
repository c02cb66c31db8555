"""What is fitted follows from the settings of the call, whatever was extracted."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runtime.errors import UserError
from tests.running import QUIET
from tests.tiny import LINEARS

MERGERS = [f"{name}.linear_fc2" for name in LINEARS]


@pytest.fixture(scope="module")
def extracted(run):
    """Features for all Mergers."""
    return read_statistics(run).extracted()


@pytest.fixture
def fit(run, extracted):
    def of(features=extracted, optimizer="closed_form", **settings):
        config = read_config(run).replace(optimizer=optimizer, **settings)
        return fit_adapter(features, config, QUIET)

    return of


@pytest.mark.parametrize("optimizer", ["closed_form", "adam", "leace"])
@pytest.mark.parametrize("targets", [("merger",), ("deepstack_merger_list.1", "merger"), ("all",)])
def test_the_settings_say_which_linears(optimizer, targets, fit, run, extracted):
    """Kills: settings that are not applied to what was extracted before (a benchmark's rows
    called "main Merger" were fitted on all Mergers)."""
    fitted = fit(optimizer=optimizer, targets=targets)
    adapter = fitted.found.result.adapter
    wanted = {name for name in MERGERS if targets == ("all",) or name.rpartition(".")[0] in targets}
    assert set(adapter.pairs) == set(fitted.rows) == wanted
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.pairs.values())
    paths = judge_of(extracted, read_config(run).samples).evaluate(adapter)["paths"]
    for name, path in paths.items():
        moved = path["drift"]["relative"]
        assert moved > 0 if f"{name}.linear_fc2" in wanted else moved == 0.0


def test_the_main_merger_alone_leaves_deepstack_as_it_is(fit, run, extracted):
    """Kills: the forgetting benchmark applying no setting."""
    adapter = fit(targets=("merger",)).found.result.adapter
    assert set(adapter.pairs) == {"merger.linear_fc2"}
    paths = judge_of(extracted, read_config(run).samples).evaluate(adapter)["paths"]
    assert paths["deepstack_merger_list.0"]["drift"]["relative"] == 0.0
    assert paths["deepstack_merger_list.1"]["drift"]["relative"] == 0.0
    assert paths["merger"]["drift"]["relative"] > 0


def test_what_was_not_extracted_is_refused(fit, extracted):
    for settings in ({"linears": ("linear_fc1",)}, {"linears": ("linear_fc1", "linear_fc2")}):
        with pytest.raises(UserError, match=r"merger.linear_fc1: its rows were not extracted"):
            fit(optimizer="adam", **settings)

    def main_merger(side):
        return replace(side, statistics={MERGERS[0]: side.statistics[MERGERS[0]]})

    train = Sides(main_merger(extracted.train.forget), main_merger(extracted.train.preserve))
    one = replace(extracted, train=train)
    assert set(fit(one, targets=("merger",)).found.result.adapter.pairs) == {MERGERS[0]}
    for optimizer in ("closed_form", "adam", "leace"):
        with pytest.raises(UserError, match=r"deepstack_merger_list.0.linear_fc2: its rows were n"):
            fit(one, optimizer, targets=("all",))
    with pytest.raises(UserError, match="--targets visual: must be any of"):
        fit(targets=("visual",))


def test_images_to_choose_by_must_have_been_set_apart(fit):
    with pytest.raises(UserError, match="--select: held_out must be given both when features"):
        fit(select="held_out")


def bytes_of(fitted):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(fitted.found.result.adapter)]


@pytest.mark.parametrize("target", ["random", "matched"])
def test_the_seed_reaches_the_targets(target, fit):
    """Kills: the seed ignored by drawn targets; the closed form draws nothing else."""
    ours, again, other = (fit(target=target, seed=seed) for seed in (0, 0, 1))
    assert bytes_of(ours) == bytes_of(again) != bytes_of(other)


def test_the_step_reaches_the_target(fit):
    """Kills: `near_step` not passed on."""
    one, two = (fit(near_step=step).found.result.history[0]["forget"] for step in (1.0, 2.0))
    assert two == pytest.approx(2 * one, rel=1e-5)
