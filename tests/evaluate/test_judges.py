"""Judges read the held-out samples, and take drift from those that are to stay."""

from pathlib import Path

import numpy as np
import pytest

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.models.lora import LoraAdapter
from tests import made
from tests.made import MERGER, TEXT, VISUAL

SAMPLES = SampleSettings(checkpoint=Path("nowhere"), forget_text=("cat",))
NOTHING = LoraAdapter({}, alpha=1.0, rank=1)
PLACES = 10 * np.eye(4)


def rows(places, seed):
    """One row a sample, near some of the axes."""
    noise = np.random.default_rng(seed).normal(size=(len(places), 4)) / 10
    return [(PLACES[place] + one)[None] for place, one in zip(places, noise, strict=True)]


@pytest.fixture
def images(tmp_path):
    """Class a is to be forgotten. To train on, each class is on its own axis; of the held-out
    images those of a lie where b is, and half of c's too."""

    def side(places, labels, **options):
        return made.side({MERGER: rows(places, len(labels))}, labels, **options)

    train = side([0] * 6, "a" * 6), side([1] * 6 + [2] * 6, "b" * 6 + "c" * 6)
    test = (
        side([1] * 4, "a" * 4, folder=tmp_path),
        side([1] * 4 + [2, 2, 1, 1], "b" * 4 + "c" * 4, folder=tmp_path),
    )
    for file in test[1].files:
        file.path.touch()
    return made.extracted([made.identity(MERGER, 4)], train, test)


def names(train, test):
    """A cat to forget among other names, each with one row to train on and one held out."""
    linears = [made.identity(TEXT, 4)]
    labels = ("cat",), ("dog", "cow")
    groups = [
        [
            made.side({TEXT: [PLACES[i][None] for i in places]}, of_side, linears, number == 0)
            for number, (places, of_side) in enumerate(zip(group, labels, strict=True))
        ]
        for group in (train, test)
    ]
    return made.extracted(linears, *groups, judged_linears=(made.identity(VISUAL, 4),))


def test_probes_are_asked_about_the_held_out_images(images):
    """Kills: evaluation on the training images (`self.test = extracted.train` in ProbeJudge)."""
    judge = judge_of(images, SAMPLES)
    found = judge.evaluate(NOTHING)
    assert found["forget"]["accuracy_before"] == 0.0
    assert found["refitted"]["accuracy_before"] == 0.0
    assert found["preserve"]["accuracy_before"] == 0.75
    score = judge.score(NOTHING)
    assert (score.before, score.forget, score.preserve) == (0.0, 0.0, 0.75)
    assert [len(row) for row in judge.pictures()] == [4, 8]


def test_names_are_judged_in_the_held_out_template():
    """Kills: evaluation on the training names (`self.test = extracted.train` in ZeroShotJudge)."""
    extracted = names(train=([0], [1, 2]), test=([3], [1, 2]))
    # It turns the row to train on round, and leaves the held-out one.
    adapter = made.moving(TEXT, PLACES[0], -2 * PLACES[0] / 100)
    judge = judge_of(extracted, SAMPLES)
    assert judge.evaluate(adapter)["forget"]["accuracy_after"] == 1.0
    assert judge.score(adapter).forget == 1.0
    # And the other way round.
    adapter = made.moving(TEXT, PLACES[3], -2 * PLACES[3] / 100)
    assert judge.evaluate(adapter)["forget"]["accuracy_after"] == 0.0


def marked(places, labels, mark, **options):
    """Images with a fourth component, which the adapter moves."""
    found = rows(places, len(labels))
    for row in found:
        row[0, 3] = mark
    return made.side({MERGER: found}, labels, **options)


# The mark is the same in every image of a side.
@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_drift_is_of_the_images_to_keep():
    """Kills: drift over all images (`read_all` in probes.py, `score` in score.py)."""
    kept = [1] * 4 + [2] * 4
    train, test = (
        (marked([0] * 4, "a" * 4, 5.0), marked(kept, "b" * 4 + "c" * 4, 0.0)) for _ in range(2)
    )
    extracted = made.extracted([made.identity(MERGER, 4)], train, test)
    adapter = made.moving(MERGER, [0, 0, 0, 1], [3, 3, 3, 3])
    judge = judge_of(extracted, SAMPLES)
    (path,) = judge.evaluate(adapter)["paths"].values()
    assert path["drift"] == {"relative": 0.0, "cosine": pytest.approx(1.0)}
    assert judge.score(adapter).drift == 0.0
    # Where they move, it is they who are measured: half of them, by their own length.
    adapter = made.moving(MERGER, PLACES[1], PLACES[1] / 100)
    assert judge.score(adapter).drift == pytest.approx(0.5, rel=0.05)


def test_drift_of_names_is_of_those_to_keep():
    """Kills: drift over all names (`ZeroShotJudge.score`)."""
    extracted = names(train=([0], [1, 2]), test=([3], [1, 2]))
    adapter = made.moving(TEXT, PLACES[3], -2 * PLACES[3] / 100)
    assert judge_of(extracted, SAMPLES).score(adapter).drift == 0.0
    adapter = made.moving(TEXT, PLACES[1], PLACES[1] / 100)
    assert judge_of(extracted, SAMPLES).score(adapter).drift == pytest.approx(0.5)
