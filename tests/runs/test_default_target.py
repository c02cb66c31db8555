"""The target of a run that is given none: stand_in with enough images of both, else near."""

from pathlib import Path

import pytest

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.data.images import ImageFile
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.command_line import parse_run
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.presets import OF_TARGET
from jax_unlearn.runs.sources import default_target
from jax_unlearn.runs.sources.default_target import ENOUGH, numbers, with_default_target
from tests.running import arguments, read


def images(counts):
    return [ImageFile(Path(f"{i}.png"), label) for label, n in counts.items() for i in range(n)]


def dataset(forget, preserve):
    return Dataset(images(forget), images(preserve), [], [])


COLOURS = ("red", "blue")
TRIANGLES = {f"{colour} triangle": 130 for colour in COLOURS}
CIRCLES = {f"{colour} circle": 125 for colour in COLOURS}


@pytest.mark.parametrize(
    ("concept", "forget", "preserve", "expected"),
    [
        # All classes of the concept, and of the circles that may take its place.
        ("triangle", TRIANGLES, CIRCLES | {"cat": 3}, (260, 250)),
        # The smaller of the two words that may.
        ("triangle", TRIANGLES, CIRCLES | {f"{c} square": 100 for c in COLOURS}, (260, 200)),
        # Without a concept every class is one, and any class may.
        (None, TRIANGLES, CIRCLES | {"cat": 3}, (130, 3)),
        ("cat", {"cat": 300}, {"dog": 400, "fox": 260}, (300, 260)),
        # Nothing is known of images without classes.
        (None, {"forget": 300}, {"preserve": 9000}, (300, None)),
    ],
)
def test_the_fewest_images_are_counted(concept, forget, preserve, expected):
    assert numbers(dataset(forget, preserve), concept) == expected


def chosen(forget=ENOUGH, preserve=ENOUGH, **settings):
    config = RunConfig.of(checkpoint=Path("x"), out=Path("y"), **settings)
    given = dataset({"cat": forget}, {"dog": preserve, "fox": preserve + 1})
    found, why = with_default_target(config, given)
    return found.objective.target, found.solver.rank, why


def test_the_number_of_images_chooses():
    target, rank, why = chosen()
    assert (target, rank) == ("stand_in", OF_TARGET["stand_in"]["rank"])
    assert f"{ENOUGH} images of the concept and {ENOUGH} of what may take its place" in why
    assert chosen(forget=ENOUGH - 1)[0] == chosen(preserve=ENOUGH - 1)[0] == "near"
    # What is given is taken, and nothing is said.
    assert "--rank 32, --lambda-forget 1.0, --lambda-preserve 1.0: there are" in why
    assert chosen(target="near") == ("near", 5, None)
    assert chosen(target="stand_in", rank=4, forget=3) == ("stand_in", 4, None)
    # Free of the choice.
    assert chosen(targets=("merger",), seed=3)[0] == "stand_in"


@pytest.mark.parametrize(
    "setting",
    [{"rank": 2}, {"near_step": 1.0}, {"optimizer": "leace"}, {"granularity": "tokens"},
     {"lambda_preserve": 0.2}, {"linears": ("linear_fc1",)}, {"auto": True}],
)  # fmt: skip
def test_a_setting_that_is_for_near_keeps_near(setting):
    (name,) = setting
    target, _, why = chosen(**setting)
    assert target == "near"
    if setting == {"optimizer": "leace"}:
        # It has no target.
        assert why is None
    else:
        assert f"as this is not the default: --{name.replace('_', '-')}; there are " in why


@pytest.mark.parametrize(
    "options", [{"rank": 5}, {"lambda_forget": 1.3}, {"granularity": "images"}]
)
def test_a_setting_that_is_given_its_default_keeps_near_too(folder, options):
    words = arguments(folder, "out", optimizer=None, epochs=None, **{"rank": None} | options)
    assert parse_run(RunConfig, words)[0].objective.target == "near"
    words = arguments(folder, "out", optimizer=None, epochs=None, rank=None, max_pixels=512, seed=1)
    assert parse_run(RunConfig, words)[0].objective.target is None


def test_images_to_keep_without_classes_keep_near():
    config = RunConfig.of(checkpoint=Path("x"), out=Path("y"))
    found, why = with_default_target(config, dataset({"forget": 300}, {"preserve": 900}))
    assert found.objective.target == "near"
    assert "the images to keep have no classes" in why


@pytest.mark.parametrize(
    ("enough", "target", "said"),
    [(8, "stand_in", "--target stand_in, --rank 2, --lambda-forget 1.0, --lambda-preserve 1.0"),
     (9, "near", "target near")],
)  # fmt: skip
def test_a_run_says_and_records_it(folder, tmp_path, capsys, monkeypatch, enough, target, said):
    monkeypatch.setattr(default_target, "ENOUGH", enough)
    monkeypatch.setitem(OF_TARGET["stand_in"], "rank", 2)
    options = {"optimizer": None, "epochs": None, "rank": None, "max_pixels": 512}
    main(arguments(folder, tmp_path / "run", **options))
    assert f"{said}: there are 8 images of the concept" in capsys.readouterr().err
    assert read(tmp_path / "run" / "config.json")["target"] == target
    found = read(tmp_path / "run" / "metrics.json")
    assert found["optimizer"] == {"near": "closed_form", "stand_in": "stand_in"}[target]
