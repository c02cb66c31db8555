"""A ledger of requests: any order, withdrawn as if never asked, and whole whatever happens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import porting
from jax_unlearn.features.statistics_check import check_requests
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runs.certificate import figures
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.ledger import commands, requests
from jax_unlearn.runs.ledger.alone import owners
from jax_unlearn.runs.ledger.chain import FILE, append, new_entry, read_chain
from jax_unlearn.runs.ledger.combine import JointFit, SumOfFits
from jax_unlearn.runs.ledger.mixed import without_image_means
from jax_unlearn.runs.ledger.named import Probes
from jax_unlearn.runs.ledger.options import Add, Init, Undo, ledger_config
from jax_unlearn.runs.ledger.requests import Request, divide, open_ledger, recorded
from jax_unlearn.runs.ledger.source import LedgerSource, dataset_of, only, requests_of
from jax_unlearn.runs.ledger.store import (
    STORE,
    StoredImages,
    StoredTower,
    path_of,
    save_images,
    save_tower,
)
from jax_unlearn.runs.ledger.strengths import MOST, STEP, search
from jax_unlearn.runs.ledger.sums import added, changes_of
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from tests import warm
from tests.running import read, refused, said

QUIET = Console(quiet=True)
# Of the second, requests of more than 11 images are fitted one by one.
LINEARS = {"merger.linear_fc2": (6, 40), "deepstack_merger_list.0.linear_fc2": (4, 22)}
CLASSES = ("red disc", "red square", "blue disc", "blue square", "cat", "dog")
CONCEPTS = ("red", "disc", "cat", "blue square")


def some_images(seed, labels):
    """Images that only differ in their rows, in the order of their digests."""
    random = np.random.default_rng(seed)
    digests = random.integers(0, 256, (len(labels), 32)).astype(np.uint8)
    order = sorted(range(len(labels)), key=lambda i: digests[i].tobytes())
    kinds = np.array([CLASSES.index(one) if one in CLASSES else 9 for one in labels])
    rows = {
        name: (random.normal(size=(len(labels), d_in)) + 8 * np.eye(10, d_in)[kinds] ).astype("f4")
        for name, (_, d_in) in LINEARS.items()
    }  # fmt: skip
    made = StoredImages(
        digests, np.arange(len(labels)) % 5 == 0, tuple(labels),
        tuple(f"/gone/{i}.png" for i in range(len(labels))), rows,
    )  # fmt: skip
    return made.take(order)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A ledger over synthetic rows, without a tower; tests copy it."""
    directory = tmp_path_factory.mktemp("ledger") / "ledger"
    directory.mkdir()
    random = np.random.default_rng(0)
    linears = tuple(
        FrozenLinear(name, random.normal(size=shape).astype("f4"), np.zeros(shape[0], "f4"))
        for name, shape in LINEARS.items()
    )
    blank = {one.projector: np.zeros(one.shape[0], "f4") for one in linears}
    init = Init(directory, ASSETS / "checkpoint", ASSETS / "images")
    weights = {"lambda_preserve": 0.1, "lambda_weight": 0.01}
    solver = replace(init.solver, rank=1, iterations=20, **weights)
    config = ledger_config(replace(init, solver=solver))
    what = {
        # The checkpoint is gone.
        "settings": commands.settings_of(config) | {"checkpoint": "/gone/checkpoint"},
        "linears": dict.fromkeys(LINEARS, "0" * 64),
        "contents": "0" * 64,
        "tower": save_tower(directory, StoredTower(linears, blank)),
        "preserve": save_images(directory, some_images(1, CLASSES * 10)),
        "left_out": [],
        "image_means": True,
    }
    append(directory, new_entry("init", what=what), [])
    return directory


@pytest.fixture
def ledger(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "ledger"))


def add(ledger, concept):
    return commands.add(Add(ledger, concept), QUIET)[0]


def add_images(ledger, concept, images):
    """A request for images that are not to be preserved, as after a pass of the tower."""
    what = {"classes": sorted({*images.labels}), "images": save_images(ledger, images)}
    return recorded(ledger, Request(concept, images), what)


def fitted(ledger, kind, equal=True):
    """What a ledger's active requests are fitted to, and what is named of each afterwards."""
    opened = open_ledger(ledger)
    source = LedgerSource(opened, opened.config)
    extracted = source.extract()
    probes = Probes(extracted)
    fit = kind(named=None if equal else probes.named_in_training)
    found = fit(extracted, source.config, QUIET, None, None)
    return found.found.result, probes.of_requests(found.found.result.adapter, found.strengths)


def same_bytes(first, second):
    one, other = first.adapter, second.adapter
    assert one.pairs.keys() == other.pairs.keys()
    for name, pair in one.pairs.items():
        for part in ("a", "b"):
            ours, theirs = (np.asarray(getattr(p, part)) for p in (pair, other.pairs[name]))
            assert ours.tobytes() == theirs.tobytes()
            assert np.linalg.norm(ours) > 0.01


def test_any_order_and_an_undo_give_the_same_bytes(ledger, tmp_path, capsys):
    extra = some_images(2, ["face"] * 10)
    other = shutil.copytree(ledger, tmp_path / "other")
    add(ledger, "red"), add(ledger, "disc"), add_images(ledger, "me", extra)
    withdrawn = add(other, "cat")
    me = add_images(other, "me", extra)
    add(other, "disc")
    commands.undo(Undo(other, withdrawn))
    commands.undo(Undo(other, me))
    add(other, "red")
    # Without "me" it is a ledger that was never asked for it.
    never, _ = fitted(other, JointFit)
    add_images(other, "me", extra)
    joint, _ = fitted(ledger, JointFit)
    same_bytes(joint, fitted(other, JointFit)[0])
    commands.undo(Undo(other, me))
    same_bytes(never, fitted(other, JointFit)[0])
    add_images(other, "me", extra)
    out = tmp_path / "run"
    main(["ledger", "solve", str(ledger), "--out", str(out)])
    again, _ = fitted(other, SumOfFits, equal=False)
    same_bytes(replace(again, adapter=porting.load_peft(out / "adapter")), again)
    metrics = read(out / "metrics.json")
    # Of "red" and "disc" 10 images are the same; a fifth of all is held out.
    assert (metrics["samples"]["forget"], metrics["samples"]["forget_held_out"]) == (32, 8)
    assert (metrics["adapter"]["rank"], metrics["ledger"]["combine"]) == (3, "sum")
    # Of all changes of this rank the joint fit has the least loss of all requests.
    least, summed = (
        one.history[one.epoch]["total"] for one in (joint, fitted(ledger, SumOfFits)[0])
    )
    assert 0 < least < min(summed, joint.history[0]["total"])
    # The red disc, which is of both, has no blue disc to compare with.
    compared = {one["concept"]: one["counterpart"] for one in metrics["reidentification"]}
    assert (compared["red"], compared["disc"]) == ("blue", "square")
    listed = json.loads(said(capsys, "ledger", "list", other, "--json"))
    assert {one["concept"] for one in listed["active"]} == {"red", "disc", "me"}
    assert [one["kind"] for one in listed["entries"]].count("undo") == 3
    # The run is whole without the ledger, and names the entry that it is of.
    assert metrics["ledger"]["digest"] == read_chain(ledger)[-1].digest
    shutil.rmtree(ledger)
    main(["evaluate", str(out)])
    assert read(out / "metrics.json")["ledger"] == metrics["ledger"]


def solve_again(ledger, kind, target):
    """What is fitted to a ledger's active requests, if `init` had been given this target."""
    opened = open_ledger(ledger)
    source = LedgerSource(opened, opened.config.replace(target=target))
    extracted = source.extract()
    fit = kind(named=Probes(extracted).named_in_training)
    return fit(extracted, source.config, QUIET, None, None).found.result


@pytest.mark.parametrize("combine", ["sum", "joint"])
def test_the_requests_of_a_ledgers_run_are_fitted_with_other_settings(
    ledger, tmp_path, capsys, combine
):
    """As with these settings from the start, and without the ledger."""
    run, swept, same, chosen = (tmp_path / name for name in ("run", "swept", "same", "chosen"))
    red = add(ledger, "red")
    add(ledger, "disc"), add_images(ledger, "me", some_images(2, ["face"] * 10))
    main(["ledger", "solve", str(ledger), "--out", str(run), "--combine", combine, "--steps"])
    kind = SumOfFits if combine == "sum" else JointFit
    wanted = {name: solve_again(ledger, kind, name) for name in ("near", "mean")}
    shutil.rmtree(ledger)
    main(["run", "--statistics", str(run), "--out", str(same)])
    first, again = (one / "adapter" / "adapter_model.safetensors" for one in (run, same))
    assert first.read_bytes() == again.read_bytes()
    same_bytes(replace(wanted["near"], adapter=porting.load_peft(same / "adapter")), wanted["near"])
    known = read(run / "metrics.json")["ledger"]
    assert known["requests"][0].keys() > {"named_after", "strength"}
    # What is named after each entry is of the ledger, which is not read.
    assert read(same / "metrics.json")["ledger"] == {
        name: value for name, value in known.items() if name not in ("steps", "concepts")
    }
    options = ["--target-kinds", "near", "mean", "--lambda-forgets", "1.3"]
    options += ["--lambda-preserves", "0.1", "--ranks", "1"]
    main(["sweep", "--statistics", str(run), "--out", str(swept), *options])
    rows = {row["target"]: row for row in read(swept / "sweep.json")}
    for name, result in wanted.items():
        assert rows[name]["total"] == pytest.approx(result.history[result.epoch]["total"])
        assert rows[name]["lambda_preserve"] == 0.1
    assert rows["near"]["strength"] == max(one["strength"] for one in known["requests"]) > 1
    assert rows["near"]["total"] != rows["mean"]["total"]
    (best,) = (row for row in rows.values() if row["chosen"])
    main(["run", "--statistics", str(swept), "--out", str(chosen)])
    metrics = read(chosen / "metrics.json")
    result = wanted[best["target"]]
    same_bytes(replace(result, adapter=porting.load_peft(chosen / "adapter")), result)
    assert metrics["forget"]["accuracy_after"] == pytest.approx(best["held_out_forget"])
    assert red in {one["id"] for one in metrics["ledger"]["requests"]}
    # The certificate has the command of this run, not that of the ledger.
    config = read_config(chosen)
    commands_of = [
        [one["command"] for one in figures(one_run, config_of_run, metrics)]
        for one_run, config_of_run in ((chosen, config), (run, read_config(run)))
    ]
    assert commands_of[0][0].startswith(f"jax-unlearn run --config {chosen}")
    assert commands_of[1][0].startswith(f"jax-unlearn ledger solve {ledger} --combine {combine}")
    # The best of a sweep at once.
    main(["run", "--statistics", str(run), "--out", str(tmp_path / "auto"), "--auto"])
    assert read(tmp_path / "auto" / "metrics.json")["ledger"].keys() == metrics["ledger"].keys()
    for option, words in (
        (["--optimizer", "leace"], "has no rank to add up"),
        (["--target", "stand_in", "--rank", "2"], "ledger init --target stand_in"),
        (["--optimizer", "adam", "--save-steps", "1"], "--save-steps: has no effect"),
    ):
        bad = ("run", "--statistics", run, "--out", tmp_path / "bad", *option)
        assert words in refused(capsys, *bad)


def test_requests_in_statistics_must_fit_their_images():
    pairs = np.array([[0, 0], [1, 1], [0, 1]], "i4")
    facts = {"ids": ["a", "b"], "concepts": ["cat", "dog"], "ledger": {
        "directory": "x", "digest": "0", "combine": "sum", "equal": False, "rank_after": None,
        "image_means": True, "names": False,
    }}  # fmt: skip

    def check(train=pairs, **changed):
        arrays = {"requests.train": train, "requests.test": pairs[:1]}
        ledger = facts["ledger"] | changed.pop("ledger", {})
        check_requests(arrays, facts | changed | {"ledger": ledger}, 2, 1)

    check()
    check(ledger={"combine": "joint", "rank_after": 3})
    for changed in (
        {"train": pairs[:1]}, {"train": pairs + 1}, {"train": pairs - 1}, {"train": pairs[:, :1]},
        {"train": pairs.astype("f4")}, {"ids": ["a"]}, {"ids": [], "concepts": []}, {"ids": [1, 2]},
        {"ledger": {"combine": "product"}}, {"ledger": {"rank_after": 0}}, {"ledger": {"x": 1}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="requests"):
            check(**changed)


@pytest.mark.parametrize("target", ["near", "shift", "matched"])
def test_a_sum_is_that_of_fits_alone(ledger, target):
    """Near is compared for one request, as neighbours are sought by the outputs of all of them."""
    for concept in CONCEPTS[:1] if target == "near" else CONCEPTS:
        add(ledger, concept)
    opened = open_ledger(ledger)
    config = opened.config.replace(target=target)
    extracted = LedgerSource(opened, config).extract()
    whole = SumOfFits()(extracted, config, QUIET, None, None).found.result.adapter
    parts = [
        changes_of(fit_adapter(only(extracted, owners(extracted) == i, config), config, QUIET)
                   .found.result.adapter)
        for i in sorted({*owners(extracted)})
    ]  # fmt: skip
    assert len(parts) == (1 if target == "near" else len(CONCEPTS))
    for name, pair in whole.pairs.items():
        ours = whole.scale * pair.b @ pair.a
        theirs = sum(part[name].b @ part[name].a for part in parts)
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_requests_are_moved_onto_stand_ins_that_are_not_forgotten(ledger, tmp_path, capsys):
    """The first entry is written anew, with another target."""
    what = dict(read_chain(ledger)[0].what)
    what["settings"] |= {"target": "stand_in", "rank": 2, "lambda_forget": 1.0} | {
        "lambda_preserve": 1.0,
        "lambda_weight": what["settings"]["lambda_weight"],
    }
    (ledger / FILE).unlink()
    append(ledger, new_entry("init", what=what), [])
    cat = add(ledger, "cat")
    (listed,) = json.loads(said(capsys, "ledger", "list", ledger, "--json"))["active"]
    nearest = listed["stand_in"]
    assert nearest in CLASSES
    assert listed["in_place_of"] is None
    assert nearest in said(capsys, "ledger", "list", ledger)
    add(ledger, nearest)
    both = json.loads(said(capsys, "ledger", "list", ledger, "--json"))["active"]
    (of_cat,) = (one for one in both if one["id"] == cat)
    assert of_cat["in_place_of"] == nearest != of_cat["stand_in"] not in ("cat", nearest)
    table = said(capsys, "ledger", "list", ledger).replace("│", " ").split()
    assert f"as {nearest} is forgotten" in " ".join(table)
    main(["ledger", "solve", str(ledger), "--out", str(tmp_path / "run")])
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["adapter"] | {"bytes": 0} == {
        "rank": 4, "alpha": 4.0, "targets": sorted(LINEARS), "bias": True, "bytes": 0,
    }  # fmt: skip
    onto = {one["concept"]: one["counterpart"] for one in metrics["expected"]["concepts"]}
    assert onto["cat"] == of_cat["stand_in"]
    # Two held-out images of each, after eight to train with.
    for one in metrics["ledger"]["requests"]:
        assert one["named_after"] < one["named_before"] == 1.0
    line = refused(capsys, "ledger", "solve", ledger, "--out", tmp_path / "r", "--combine", "joint")
    assert "give --equal" in line
    joint = fitted(ledger, JointFit)[0]
    assert joint.adapter.rank == 4
    assert joint.history[-1]["forget"] < joint.history[0]["forget"]


def test_without_image_means_only_the_sums_of_classes_are_kept(ledger):
    images = open_ledger(ledger).preserve
    with pytest.raises(UserError, match=r"blue disc has 2 images held out, and needs 3"):
        without_image_means(images)
    images = replace(images, held_out=np.zeros(len(images), bool))
    mixed = without_image_means(images)
    assert mixed.content() == images.content()
    for name, x in images.rows.items():
        for label in CLASSES:
            own = np.array(images.labels) == label
            before, after = (np.asarray(one[own], np.float64) for one in (x, mixed.rows[name]))
            np.testing.assert_allclose(after.sum(axis=0), before.sum(axis=0), atol=1e-4)
            np.testing.assert_allclose(after.T @ after, before.T @ before, rtol=1e-4, atol=1e-3)
            far = np.linalg.norm(before[:, None] - after, axis=2)
            apart = np.linalg.norm(before[:, None] - before, axis=2)
            assert far.min() > 0.2 * apart[apart > 0].min()
    # Drawn anew each time.
    again = without_image_means(images).rows
    assert all(np.abs(again[name] - x).max() > 0.1 for name, x in mixed.rows.items())


def test_what_is_named_after_each_entry(ledger, tmp_path):
    """As a solve of the requests that are active then says, also of one that is withdrawn."""
    cat, red, me = add(ledger, "cat"), add(ledger, "red"), some_images(2, ["face"] * 10)
    me = add_images(ledger, "me", me)
    commands.undo(Undo(ledger, cat))
    main(["ledger", "solve", str(ledger), "--out", str(tmp_path / "run"), "--steps"])
    found = read(tmp_path / "run" / "metrics.json")["ledger"]
    assert found["concepts"] == {cat: "cat", red: "red", me: "me"}
    assert [(one["entry"], one["kind"], one["active"]) for one in found["steps"]] == [
        (1, "init", []), (2, "add", [cat]), (3, "add", sorted([cat, red])),
        (4, "add", sorted([cat, red, me])), (5, "undo", sorted([red, me])),
    ]  # fmt: skip
    first, *_, last = (one["named"] for one in found["steps"])
    assert {one["id"]: one["named_after"] for one in found["requests"]} == {
        id: last[id] for id in (red, me)
    }
    # Named, forgotten, and named again.
    assert found["steps"][1]["named"][cat] < min(first[cat], last[cat])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "5 undo cat" in page
    assert f"<td><b>{100 * last[red]:.1f} %</b></td>" in page


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(CONCEPTS), min_size=1, max_size=12))
def test_what_is_fitted_depends_on_the_active_requests_alone(template, steps):
    """Each step adds a concept that is not active, and withdraws one that is."""
    preserve = open_ledger(template).preserve

    def request(concept):
        classes = [one for one in CLASSES if set(concept.split()) <= set(one.split())]
        return Request(concept, preserve.of_classes(classes))

    entries, there = read_chain(template), set()
    for concept in steps:
        kind = "undo" if concept in there else "add"
        there ^= {concept}
        entries.append(new_entry(kind, request(concept).id, {"concept": concept}, entries))
    assert requests.active(entries) == sorted(request(one).id for one in there)
    if not there:
        with pytest.raises(UserError, match="nothing to forget"):
            divide([], preserve)
        return
    # In the order in which they were added, and in that of the alphabet.
    orders = dict.fromkeys(one for one in steps if one in there), sorted(there)
    first, second = (divide([request(one) for one in order], preserve) for order in orders)
    assert first.forget.content() == second.forget.content()
    of_both = [requests_of(one) for one in (first, second)]
    assert (of_both[0].owner == of_both[1].owner).all()
    assert dataset_of(first).fingerprint() == dataset_of(second).fingerprint()
    keys = [*first.forget.keys, *first.preserve.keys]
    assert len(keys) == len({*keys}) == len(preserve)
    assert {*first.forget.labels} == {
        label for label in CLASSES if any({*one.split()} <= {*label.split()} for one in there)
    }


def test_an_image_of_several_requests_is_as_in_the_first(ledger):
    images = some_images(3, ["face"] * 10)
    row = {name: x + 1 for name, x in images.rows.items()}
    other = replace(images.labelled(["portrait"] * 10), rows=row, held_out=~images.held_out)
    two = [Request("a", images), Request("b", other)]
    divided = divide(two, open_ledger(ledger).preserve)
    first = min(two, key=lambda one: one.id)
    assert divided.forget.content() == first.images.content()
    assert set(requests_of(divided).owner.tolist()) == {0}
    assert divided.of_request(1).all()
    np.testing.assert_array_equal(
        divided.forget.rows["merger.linear_fc2"], first.images.rows["merger.linear_fc2"]
    )


def test_a_sum_of_changes_is_their_sum_and_is_cut_to_the_nearest():
    random = np.random.default_rng(0)

    def change(rank, alpha):
        size = {"x": (5, 7), "y": (3, 4)}
        pairs = {
            name: LoraPair(
                random.normal(size=(rank, d)), random.normal(size=(e, rank)), random.normal(size=e)
            )
            for name, (e, d) in size.items()
        }
        # The last column changes nothing.
        pairs["y"].b[:, -1] = 0
        return LoraAdapter(pairs, alpha, rank)

    def product(adapter, name):
        pair = adapter.pairs[name]
        return adapter.scale * np.asarray(pair.b) @ np.asarray(pair.a)

    parts, strengths = [change(2, 3.0), change(1, 1.0), change(4, 2.0)], [1.0, 2.0, 0.5]
    changes = [changes_of(one) for one in parts]
    assert [(len(one["x"].a), len(one["y"].a)) for one in changes] == [(2, 1), (1, 0), (4, 3)]
    whole, short = added(changes, strengths), added(changes, strengths, 2)
    # As many ranks as the larger Linear has.
    assert (whole.rank, short.rank) == (5, 2)
    for name in ("x", "y"):
        of_parts = [k * product(one, name) for k, one in zip(strengths, parts, strict=True)]
        expected = sum(of_parts)
        np.testing.assert_allclose(product(whole, name), expected, atol=1e-5)
        u, s, v = np.linalg.svd(expected)
        np.testing.assert_allclose(product(short, name), u[:, :2] * s[:2] @ v[:2], atol=1e-5)
        biases = [k * one.scale * one.pairs[name].bias
                  for k, one in zip(strengths, parts, strict=True)]  # fmt: skip
        np.testing.assert_allclose(whole.scale * whole.pairs[name].bias, sum(biases), atol=1e-5)


@given(st.permutations(range(4)))
def test_strengths_rise_until_nothing_is_named(order):
    # Named below this strength; the last two at any, fewest from 1.5 and at 1.
    least = {0: 1.0, 1: 1.3, 2: 99.0, 3: 99.0}
    tried = []

    def fit(strengths):
        tried.append([*strengths])
        return strengths

    def named(strengths):
        rest = {2: lambda s: 2 if s > 1.5 else 5, 3: lambda s: 3 * s}
        of = zip(order, strengths, strict=True)
        return [0 if s >= least[i] else rest.get(i, lambda _: 1)(s) for i, s in of]

    fitted_to, strengths = search(4, fit, named)
    assert dict(zip(order, strengths, strict=True)) == {0: 1, 1: STEP**2, 2: STEP**2, 3: 1}
    assert fitted_to == strengths == tried[-1]
    assert max(map(max, tried)) == MOST


def test_damage_is_named(ledger, capsys):
    add(ledger, "red"), add(ledger, "cat")
    path, whole = ledger / FILE, (ledger / FILE).read_text()
    lines = whole.splitlines(keepends=True)
    digest = read_chain(ledger)[1].digest
    for text, words in {
        whole.replace('"concept": "red"', '"concept": "rad"'): "line 2 has changed",
        whole[:-20]: "line 3 is cut off",
        lines[0] + lines[2]: "line 2 does not follow",
        lines[1]: "line 1 does not follow",
        "": "is empty",
    }.items():
        path.write_text(text)
        assert words in refused(capsys, "ledger", "list", ledger)
    # Without its last line the chain is whole; the digest of an earlier list shows it.
    path.write_text(lines[0])
    assert "does not continue" in refused(capsys, "ledger", "list", ledger, "--digest", digest)
    path.write_text(whole)
    assert digest in said(capsys, "ledger", "list", ledger, "--digest", digest, "--json")
    stored = path_of(ledger, read_chain(ledger)[0].what["preserve"])
    data = stored.read_bytes()
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    line = refused(capsys, "ledger", "solve", ledger, "--out", ledger.parent / "run")
    assert f"{stored}: has changed" in line
    stored.unlink()
    assert f"{stored}: no such file" in refused(capsys, "ledger", "add", ledger, "--concept", "x")
    path.unlink()
    assert f"{path}: no such file" in refused(capsys, "ledger", "undo", ledger, "x")
    assert not (ledger.parent / "run").exists()


WRITER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from jax_unlearn.runs.ledger import requests
from jax_unlearn.runs.ledger.store import save_images
directory, name, killed = Path(sys.argv[1]), *sys.argv[2:]
images = requests.open_ledger(directory).preserve
for number in range(6 if killed else 5):
    if number == 5:
        requests.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    own = images.labelled([f"{name} {number}"] * len(images))
    what = {"classes": [], "images": save_images(directory, own)}
    requests.recorded(directory, requests.Request(f"{name} {number}", own), what)
"""


def test_a_killed_process_and_two_at_once_leave_a_whole_ledger(ledger, capsys):
    started = [
        warm.Process(["-c", WRITER, ledger, name, killed])
        for name, killed in (("one", "killed"), ("other", ""))
    ]
    assert [process.wait(timeout=120) for process in started] == [-9, 0]
    concepts = [entry.what["concept"] for entry in read_chain(ledger)[1:]]
    assert sorted(concepts) == sorted(f"{who} {n}" for who in ("one", "other") for n in range(5))
    listed = json.loads(said(capsys, "ledger", "list", ledger, "--json"))
    # What the killed one had written is named by no entry.
    assert len(listed["unnamed"]) == 1
    add(ledger, "cat")


def test_settings_that_need_what_is_not_kept_are_refused(tmp_path, ledger, capsys):
    start = ["ledger", "init", tmp_path / "new", "--checkpoint", ASSETS / "checkpoint",
             "--preserve", ASSETS / "images" / "train"]  # fmt: skip
    for words, why in {
        ("--target", "stand_in", "--near-step", "2"): "--near-step: has no effect",
        ("--granularity", "tokens"): "keeps the mean of each image",
        ("--linears", "linear_fc1"): "before a GELU",
        ("--optimizer", "leace"): "erases one concept",
        ("--epochs", "3"): "--epochs: has no effect",
        ("--checkpoint", ASSETS / "clip" / "checkpoint"): "is a CLIP",
    }.items():
        assert why in refused(capsys, *start, *words)
    assert not (tmp_path / "new").exists()
    for place, why in {
        ASSETS / "images" / "train" / "x": "lies in --preserve",
        ledger: "exists; choose another folder",
    }.items():
        line = refused(capsys, "ledger", "init", place, *start[3:])
        assert f"{place}: {why}" in line
        assert "--o" not in line
    red = add(ledger, "red")
    for words, why in {
        ("add", ledger, "--concept", "red"): f"{red} is active already",
        ("add", ledger, "--concept", "green"): "no class to preserve has these words",
        ("add", ledger, "--concept", "red", "--workers", "1"): "no tower is run",
        ("undo", ledger, "x"): f"the active ones: {red}",
        ("solve", ledger, "--out", ledger / "run"): "lies in the ledger",
        ("solve", ledger, "--out", tmp_path / "r", "--combine", "joint", "--rank-after", "1"):
            "--rank-after: has no effect",
    }.items():  # fmt: skip
        assert why in refused(capsys, "ledger", *words)
    commands.undo(Undo(ledger, red))
    assert "no request is active" in refused(
        capsys, "ledger", "solve", ledger, "--out", tmp_path / "r"
    )


def test_a_ledger_of_the_shipped_model_from_folders_to_an_export(tmp_path, capsys, monkeypatch):
    for side, names in {
        "keep": ("red circle", "blue circle", "blue triangle", "cat"), "me": ("astronaut",),
    }.items():  # fmt: skip
        for name in names:
            (tmp_path / side / name).mkdir(parents=True)
            for file in sorted((ASSETS / "images" / "train" / name).iterdir())[:12]:
                shutil.copy(file, tmp_path / side / name)
    # The same image as one to preserve, whose rows are known.
    cat = next((tmp_path / "keep" / "cat").iterdir())
    shutil.copy(cat, tmp_path / "me" / "astronaut" / f"cat-{cat.name}")
    ledger, out = tmp_path / "ledger", tmp_path / "run"
    # So short a way that all are still named at its end.
    main(["ledger", "init", str(ledger), "--checkpoint", str(ASSETS / "checkpoint"), "--preserve",
          str(tmp_path / "keep"), "--near-step", "0.3"])  # fmt: skip
    images = ["--images", str(tmp_path / "me")]
    me = said(capsys, "ledger", "add", ledger, "--concept", "astronaut", *images).strip()
    # Another ledger, of sums alone.
    sums, solved = tmp_path / "sums", tmp_path / "solved"
    start = ["ledger", "init", str(sums), "--checkpoint", str(ASSETS / "checkpoint"),
             "--preserve", str(tmp_path / "keep")]  # fmt: skip
    main([*start, "--no-image-means"])
    line = refused(capsys, "ledger", "add", sums, "--concept", "astronaut", *images)
    assert "cat-" in line
    assert "cannot take a single image out of their sums" in line
    main(["ledger", "add", str(sums), "--concept", "red"])
    main(["ledger", "solve", str(sums), "--out", str(solved)])
    of_sums = read(solved / "metrics.json")
    assert not of_sums["ledger"]["image_means"]
    assert any("keeps no image means" in one for one in of_sums["warnings"])
    (red,) = of_sums["ledger"]["requests"]
    assert red["named_after"] < 0.3 < red["named_before"]
    # Withdrawn and asked again: no tower is run.
    main(["ledger", "undo", str(ledger), me])
    with monkeypatch.context() as patched:
        patched.setattr(porting, "load_vision_tower", None)
        assert (
            said(capsys, "ledger", "add", ledger, "--concept", "astronaut", *images).strip() == me
        )
        main(["ledger", "add", str(ledger), "--concept", "red"])
        # From here on the images may be gone.
        shutil.rmtree(tmp_path / "me")
        shutil.rmtree(tmp_path / "keep")
        main(["ledger", "solve", str(ledger), "--out", str(out)])
    metrics = read(out / "metrics.json")
    counts = {name: metrics["samples"][name] for name in ("forget", "forget_held_out", "preserve")}
    # A fifth, rounded up, of 12 is held out; the cat counts as forgotten.
    assert counts["forget"] + counts["forget_held_out"] == 12 + 1 + 12
    assert counts["preserve"] <= 3 * 9
    for rows, strength, named in (
        (metrics["ledger"]["requests"], (1.5, 4), (0, 0.25)),
        (fitted(ledger, SumOfFits)[1], (1, 1), (0.7, 1)),
    ):
        for one in rows:
            assert one["named_before"] > 0.7
            assert strength[0] <= one["strength"] <= strength[1]
            assert named[0] <= one["named_after"] <= named[1]
    assert (ledger.stat().st_mode | out.stat().st_mode) & 0o777 == ledger.stat().st_mode & 0o777
    main(["evaluate", str(out)])
    main(["certify", str(out), "--no-whole-checkpoint"])
    made = read(out / "certificate.json")["figures"][0]["command"]
    assert made == f"jax-unlearn ledger solve {ledger} --combine sum --out OUT"
    main(["export", str(out), "--out", str(tmp_path / "merged")])
    assert len([*(ledger / STORE).iterdir()]) == 3
    assert not any("keeps no image means" in one for one in metrics["warnings"])


def test_settings_of_another_form_are_named(ledger, capsys):
    what = dict(read_chain(ledger)[0].what)
    what["settings"] = {**what["settings"], "seed": "x"}
    append(ledger, new_entry("init", what=what), [])
    said = refused(capsys, "ledger", "list", ledger)
    assert f"{ledger}: its settings are not those of a ledger (seed: 'x' is not a value" in said
