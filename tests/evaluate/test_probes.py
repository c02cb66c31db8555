"""What readers report on embeddings whose content is known."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jax_unlearn.evaluate import probes
from jax_unlearn.evaluate.probes import (
    Split,
    drift,
    headline,
    neighbour_classes,
    read_all,
    read_splits,
)
from jax_unlearn.evaluate.score import fit_probes, score

CLASSES = ("a", "b", "c", "d")
CENTRES = {"a": 0, "b": 1, "c": 5, "d": 20}


def embeddings(seed, erase=False):
    """Four classes along one axis and across others; `erase` moves "a" onto "b"."""
    random = np.random.default_rng(seed)
    labels = np.repeat(CLASSES, 30)
    x = 0.1 * random.normal(size=(len(labels), 6))
    for i, name in enumerate(CLASSES):
        source = "b" if erase and name == "a" else name
        x[labels == name, 0] += CENTRES[source]
        x[labels == name, 1 + (1 if source == "b" else i)] += 2
    return x.astype(np.float32), labels


def split(seed, erase):
    before, labels = embeddings(seed)
    return Split(before, embeddings(seed, erase)[0], labels, labels == "a")


@pytest.fixture(scope="module")
def read():
    train, test = ({"p": split(seed, True), "q": split(seed, False)} for seed in (0, 1))
    return read_all(train, test)


def test_an_erased_class_is_no_longer_read_on_that_path(read):
    paths, _ = read
    for reader in ("nearest_mean", "linear_probe"):
        assert paths["p"]["readers"][reader]["before"]["forget"] == 1.0
        assert paths["p"]["readers"][reader]["after"]["forget"] == 0.0
        assert paths["p"]["readers"][reader]["after"]["preserve"] == 1.0
        assert paths["q"]["readers"][reader]["after"]["forget"] == 1.0


def test_readers_refitted_on_erased_features_are_near_a_guess_between_two(read):
    scores = read[0]["p"]["readers"]
    for reader in ("refitted_probe", "refitted_neighbour"):
        assert scores[reader]["before"]["forget"] == 1.0
        assert 0.2 < scores[reader]["after"]["forget"] < 0.8


@pytest.mark.parametrize(
    ("most", "kind"), [(10**9, "logistic regression"), (2000, "ridge regression")]
)
def test_many_classes_are_read_by_ridge_regression(monkeypatch, most, kind):
    """120 rows of 6 features and 4 classes."""
    monkeypatch.setattr(probes, "MOST", most)
    train, test = ({"p": split(seed, True)} for seed in (0, 1))
    found = read_splits(train, test)
    assert found["probe"] == kind
    assert found["forget"] | {"chance": 0} == {
        "accuracy_before": 1.0, "accuracy_after": 0.0, "chance": 0,
    }  # fmt: skip
    assert found["preserve"] == {"accuracy_before": 1.0, "accuracy_after": 1.0}


def test_probes_of_few_images_are_fitted_by_one_thread(monkeypatch):
    train = {"p": split(0, True)}

    def threads():
        with probes.threads_for(train):
            return [pool["num_threads"] for pool in threadpool_info()]

    few = threads()
    assert set(few) == {1}
    # 120 images of 6 numbers and 4 classes.
    monkeypatch.setattr(probes, "FEW", 120 * 6 * 4)
    with threadpool_limits(3):
        assert threads() == [3] * len(few)
    monkeypatch.setattr(probes, "FEW", 120 * 6 * 4 + 1)
    assert threads() == few


def test_a_refitted_reader_finds_what_merely_moved():
    x, labels = embeddings(0)
    moved = x + np.where(labels == "a", 50, 0)[:, None].astype(np.float32)
    train = test = {"p": Split(x, moved, labels, labels == "a")}
    readers = read_all(train, test)[0]["p"]["readers"]
    assert readers["nearest_mean"]["after"]["forget"] == 0.0
    assert readers["refitted_neighbour"]["after"]["forget"] == 1.0


def test_headline_takes_each_figure_from_its_worst_path():
    def path(forget, preserve):
        scores = ({"forget": f, "preserve": p} for f, p in zip(forget, preserve, strict=True))
        return {"readers": {"linear_probe": dict(zip(("before", "after"), scores, strict=True))}}

    paths = {"p": path((0.9, 0.1), (0.8, 0.7)), "q": path((0.7, 0.3), (0.95, 0.6))}
    assert headline(paths, chance=0.25) == {
        "forget": {"accuracy_before": 0.9, "accuracy_after": 0.3, "chance": 0.25},
        "preserve": {"accuracy_before": 0.8, "accuracy_after": 0.6},
    }


def test_headline_of_one_erased_and_one_untouched_path(read):
    line = headline(read[0], chance=0.25)
    assert line["forget"] == {"accuracy_before": 1.0, "accuracy_after": 1.0, "chance": 0.25}
    assert line["preserve"] == {"accuracy_before": 1.0, "accuracy_after": 1.0}


def test_neighbours_are_the_nearest_preserved_classes(read):
    assert read[1] == ["b", "c", "d"]


def test_neighbours_are_few_and_not_misled_by_a_common_mean():
    random = np.random.default_rng(0)
    names = np.array([f"{c} {s}" for c in "ABCDEF" for s in "xy"])
    labels = np.repeat(names, 5)
    x = 0.1 * random.normal(size=(len(labels), 8)) + 100
    for i, color in enumerate("ABCDEF"):
        x[np.char.startswith(labels, color), i] += 1
    is_forget = labels == "A x"
    train = {"p": Split(x, x, labels, is_forget)}
    assert "A y" in neighbour_classes(train)
    assert len(neighbour_classes(train)) == 3


def test_drift_is_relative():
    x = np.random.default_rng(0).normal(size=(5, 4))
    assert drift(x, x) == {"relative": 0.0, "cosine": pytest.approx(1.0)}
    assert drift(x, 1.5 * x) == {"relative": pytest.approx(0.5), "cosine": pytest.approx(1.0)}
    assert drift(x, -x)["cosine"] == pytest.approx(-1.0)


def test_any_forgotten_class_names_the_concept():
    """Kills: "forget" of a probe counting only the right class (`Groups.score`, `score`).

    Both triangles are forgotten, and every red one looks blue: the concept is named all the same.
    """
    labels = np.repeat(("red triangle", "blue triangle", "red circle", "cat"), 10)
    is_forget = np.char.endswith(labels, "triangle")
    random = np.random.default_rng(0)

    def split(swapped):
        place = np.repeat([1 if swapped else 0, 1, 2, 3], 10)
        x = (np.eye(4)[place] + random.normal(size=(40, 4)) / 100).astype(np.float32)
        return {"p": Split(x, x, labels, is_forget)}

    train, test = split(False), split(True)
    readers = read_all(train, test)[0]["p"]["readers"]
    for reader in ("nearest_mean", "linear_probe", "refitted_probe", "refitted_neighbour"):
        assert readers[reader]["before"]["forget"] == readers[reader]["after"]["forget"] == 1.0
    found = score(fit_probes(train), test)
    assert (found.before, found.forget, found.chance) == (1.0, 1.0, 0.5)
    # What is right all the same is selectivity: the colour of half of them is another.
    assert (found.selectivity_before, found.selectivity) == (0.5, 0.5)
