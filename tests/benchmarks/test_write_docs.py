"""Tables of forgetting from a small example, and the rows that the writer refuses."""

import copy

import pytest

pytest.importorskip("torch")

from benchmarks.forgetting import cells, clip_names, ledger_tables, linears, optimisers, targets
from benchmarks.markdown import numbers, refuse_equal, replace
from benchmarks.scale import many_requests
from benchmarks.speed import goals

MERGERS = ("merger", "deepstack_merger_list.0")
MACHINE = {"cpu": "x", "cores": 2, "python": "3.11", "jax": "1", "torch": "2", "date": "2026-01-02"}
QUESTION = "what is this?"


def scores(share, instead, false_yes=0.0):
    return {
        "named": [{"question": QUESTION, "share": share, "chance": 0.04, "instead": instead}],
        "confirmed": [
            {"question": "is it?", "share": share / 2, "chance": 0.5, "instead": {"no": 1.0}}
        ],
        "false_yes": {"is there a circle?": false_yes, "is there a cat?": 0.0},
        "selectivity": 0.9,
        "selectivity_of": {"photo or drawing?": 0.9},
        "others": 0.99,
        "others_rest": 0.98,
        "neighbours": 0.97,
        "yes_no": 1.0,
    }


def row(target="near", mergers=MERGERS, seed=0, share=0.0, moved=0.05, **setting):
    def path(name):
        found = {"forget": share / 3 + 0.4, "preserve": 1.0, "neighbours": 1.0}
        readers = {reader: {"before": found, "after": found} for reader, _ in targets.READ}
        return {"readers": readers, "drift": {"relative": moved if name in mergers else 0.0}}

    return {
        "setting": cells.DEFAULT | {"target": target} | setting,
        "seed": seed,
        "seconds": 1.0 + seed,
        "linears": [f"{name}.linear_fc2" for name in mergers],
        "rank": 1,
        "after": scores(share, {"a|cat": 0.6, "dog": 0.3, "cow": 0.1}, share / 4),
        "paths": {name: path(name) for name in MERGERS},
        "neighbours": ["cat"],
        "chance": {"forget": 0.04},
    }


def concept(name, *rows, regions=None):
    before = scores(1.0, {"astronaut": 1.0})
    images = {"forget": 25, "forget_regions": regions}
    return {"concept": name, "images": images, "before": before, "rows": list(rows)}


def results():
    main = row(mergers=("merger",), share=0.2, moved=0.03)
    drawn = [row("random", seed=seed, share=0.5 + seed / 10, moved=0.2) for seed in (0, 1)]
    return {
        "machine": MACHINE,
        "concepts": [concept("astronaut", row(), main, *drawn, regions=4)],
        "others": [concept("teal", row(share=0.3, moved=0.07))],
        "unseen": [concept("gray", row(share=0.04, moved=0.06))],
    }


def test_rows_are_labelled_from_the_saved_adapter():
    text = targets.table(results())
    assert text.startswith("*2026-01-02, 2 cores (x), jax 1, torch 2; `python -m benchmarks.")
    assert "Images to forget: 25 (4 regions)." in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert "linear_fc2 of main Merger, rank 1" in lines["near, main Merger"]
    default = lines["**near, all Mergers (default)**"]
    assert "a/cat 60.0, dog 30.0" in default
    assert "cow" not in default
    assert default.endswith("linear_fc2 of all Mergers, rank 1 | 5.0 |")
    assert "55.0 (50.0–60.0)" in lines["random, all Mergers"]
    published = row(mergers=("merger",), **cells.PUBLISHED)
    assert cells.label(published).startswith("**published scheme**: random, main Merger")


def test_the_tables_of_one_setting():
    text = targets.default_table(results())
    assert "| gray | none | 25 | 100.0 | 4.0 | 4.0 |" in text
    assert "| astronaut | yes | 25 (4 regions) |" in text
    expected = targets.expected(results())
    assert "| gray | 25 | 100.0 → 4.0 |" in expected
    assert "teal" not in expected
    last = "| **worst of 3** |  | 30.0 |  | 7.5 | 90.0 | 97.0 | 99.0 | 50.0 |"
    assert expected.splitlines()[-1] == last


def test_readers_are_shown_on_the_paths_that_were_adapted():
    text = targets.readers(results())
    assert "| near, main Merger | merger |" in text
    assert "| near, main Merger | deepstack_merger_list.0 |" not in text
    assert "| before | deepstack_merger_list.0 |" in text


def test_solvers_and_linears():
    found = results()
    rows = [row(), row(optimizer="adam", moved=0.051), row(optimizer="leace", share=0.3)]
    text = optimisers.table({"machine": MACHINE, "concepts": [concept("gray", *rows)]})
    assert [name in text for name in ("closed form", "Adam", "LEACE")] == [True] * 3
    first = row(share=0.1)
    first["linears"] = [f"{name}.linear_fc1" for name in MERGERS]
    one = concept("gray", row(), first)
    text = linears.table({"machine": found["machine"], "epochs": 5, **one})
    assert "near, all Mergers, linear_fc1" in text


def test_two_rows_with_one_measurement_are_refused():
    found = results()
    rows = found["concepts"][0]["rows"]
    twin = copy.deepcopy(rows[0]) | {"seconds": 9.0}
    twin["setting"]["target"] = "shift"
    rows.append(twin)
    with pytest.raises(SystemExit, match=r"“\*\*near, all.*“shift, all Mergers” are equal in all"):
        targets.table(found)
    twin["equal_because"] = "this example says so"
    assert "shift, all Mergers" in targets.table(found)
    # Shown alike, but not measured alike.
    del twin["equal_because"]
    twin["after"]["selectivity_of"]["photo or drawing?"] += 1e-9
    assert "shift, all Mergers" in targets.table(found)


def test_a_path_that_moved_without_an_adapter_is_refused():
    found = results()
    moved = found["concepts"][0]["rows"][1]["paths"]["deepstack_merger_list.0"]["drift"]
    moved["relative"] = 0.047
    with pytest.raises(SystemExit, match=r"does not adapt deepstack_merger_list\.0, and moved it"):
        targets.table(found)


def test_one_label_and_seed_is_one_row():
    found = results()
    found["concepts"][0]["rows"].append(row(share=0.7))
    with pytest.raises(SystemExit, match=r"two rows are .* with seed 0"):
        targets.table(found)


def test_clip_rows_are_compared_over_presets():
    one = {
        "forget": ["cat"],
        "preset": "default",
        "seed": 0,
        "trials": 1,
        "lambda_forget": 1.3,
        "fall": 0.9,
        "seconds": 1.0,
        "before": {"forget": 1.0, "others": 1.0, "neighbours": 1.0},
        "after": {"forget": 0.0, "others": 1.0, "neighbours": 1.0},
        "classes": {"cat": {"before": 1.0, "after": 0.0}},
        "other_data": {"before": 1.0, "after": 1.0},
    }
    seeds = {"machine": MACHINE, "rows": [one, one | {"seed": 1}]}
    assert "| cat, default | 100.0 → 0.0 |" in clip_names.table(seeds)
    with pytest.raises(SystemExit, match="“cat, default” and “cat, faithful”"):
        clip_names.table({"machine": MACHINE, "rows": [one, one | {"preset": "faithful"}]})


def test_the_tables_of_ledgers():
    def request(named, drift, **more):
        kept = {"selectivity": 1.0, "others": 0.99}
        model = {"before": kept, "after": kept | {"others": 1.0}}
        both = {"model": {"a": 0.0, "b": named}, "probe": {"a": 0.0, "b": named / 2}}
        probes = {"before": 0.9, "after": 0.8, "drift": drift}
        facts = {"requests": 2, "rank": 10, "cpu_seconds": 1.4}
        return facts | {"named": both, "model": model, "probes": probes} | more

    how = {"set": "classes", "combine": "sum", "strengths": {"a": 1.0, "b": 1.25}}
    found = {
        "machine": MACHINE,
        "rows": [
            request(0.0, 0.1, equal=False, **how),
            request(0.4, 0.05, equal=True, **how | {"strengths": {"a": 1.0, "b": 1.0}}),
        ],
        "orders": {
            "digests": ["ab" * 32, "ab" * 32],
            "stacked": [request(0.2, 0.3, order=0), request(0.0, 0.2, order=1)],
        },
    }
    text = ledger_tables.table(found)
    kept = "100.0 → 100.0 | 99.0 → 100.0 | 90.0 → 80.0"
    assert f"| 2 | sum | 0.0 | 0.0 | 0.0 | {kept} | 10.0 | 10 | 1 | b 1.25 |" in text
    assert f"| 2 | sum, `--equal` | 40.0 | 20.0 | 10.0 | {kept} | 5.0 | 10 | 1 | – |" in text
    text = ledger_tables.orders(found)
    assert f"| 2 | a ledger, any order | 0.0 | 0.0 | 0.0 | {kept} | 10.0 |" in text
    assert f"| 2 | stacked, order 1 | 20.0 | 10.0 | 5.0 | {kept} | 30.0 |" in text
    assert "2 random orders gave 1 adapter" in text


def test_what_is_compared_are_numbers():
    assert [*numbers({"b": [1, {"c": 2.5}], "a": True, "d": "3"})] == [1.0, 2.5]
    refuse_equal("any", [("one", {"name": "x"}), ("other", {"name": "x"})])
    refuse_equal("exam", [("one", [1, 2]), ("other", [1, 2])])


def test_marks_must_be_there():
    assert replace("<!-- a -->old<!-- end a -->", "a", "new") == (
        "<!-- a -->\n\nnew\n\n<!-- end a -->"
    )
    with pytest.raises(SystemExit, match="no marks <!-- b -->"):
        replace("text", "b", "new")


def test_the_table_of_many_requests():
    used = {"seconds": 2.0, "cpu_seconds": 3.0, "peak": 2**30}

    def row(count, combine, kept):
        return {
            "requests": count, "combine": combine, "chain": 2**20, "rank": count, "fit": 1.0,
            "adapter": 2**21, "run": 2**22, "named_before": 1.0, "named_after": 0.0,
            "others": {"accuracy_before": 0.99, "accuracy_after": kept},
            "probe": "ridge regression",
            **dict.fromkeys(("add", "undo", "list", "solve"), used),
        }  # fmt: skip

    found = {
        "machine": MACHINE, "shape": [8, 4], "images": 10, "kept": 25_000, "store": 2**20,
        "rows": [row(10, "sum", 0.5), row(10, "joint", 0.98)],
    }  # fmt: skip
    text = many_requests.table(found)
    assert "| 10 | sum | 2.0 |" in text
    assert "| 100 → 0 | 99.0 → 98.0 |" in text
    assert "by ridge regression" in text
    found["rows"][1] = found["rows"][0] | {"combine": "joint"}
    with pytest.raises(SystemExit, match="“sum 10” and “joint 10”"):
        many_requests.table(found)


@pytest.mark.parametrize(
    ("figure", "least", "shown", "met"),
    [(1.15, True, "1.15 s", "yes"), (1.149, True, "1.15 s", "no"), (1.15, False, "1.15 s", "yes"),
     (1.16, False, "1.16 s", "no"), (None, True, "not measured", "–")],
)  # fmt: skip
def test_a_goal_is_met_by_its_figure_alone(figure, least, shown, met):
    sign = "at least" if least else "at most"
    row = goals.Goal("what", 1.15, figure, " s", least).row()
    assert row == ["what", f"{sign} 1.15 s", shown, met]
