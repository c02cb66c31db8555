"""The command line on a tiny real checkpoint: a whole run, and every bad input."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import porting
from jax_unlearn.data.images import read_image
from jax_unlearn.evaluate.judges import splits
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import TERMS, loss
from jax_unlearn.objective.problem import adapted_in, problems
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.config import read_config
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runtime.assets import ASSETS
from tests import tiny
from tests.running import CLOSED_FORM, QUIET, arguments, parse, read, source


def test_a_run_leaves_every_file_of_the_contract(run):
    names = {path.name for path in run.iterdir()}
    required = {"config.json", "metrics.json", "history.jsonl", "adapter", "report.html"}
    assert names == required | {"digests.json", "statistics.safetensors"}
    metrics = read(run / "metrics.json")
    assert metrics["objective"].keys() >= {"forget", "preserve", "weight", "total", "initial"}
    assert metrics["forget"].keys() == {"accuracy_before", "accuracy_after", "chance"}
    assert metrics["preserve"].keys() == {"accuracy_before", "accuracy_after"}
    assert metrics["refitted"].keys() == {"accuracy_before", "accuracy_after"}
    assert metrics["seconds"].keys() >= {"extract", "optimise", "total"}
    assert metrics["adapter"].keys() == {"rank", "alpha", "targets", "bias", "bytes"}
    assert len(metrics["adapter"]["targets"]) == 3
    assert metrics["objective"]["total"] < metrics["objective"]["initial"]
    counts = {key: metrics["samples"][key] for key in ("forget", "forget_held_out", "preserve")}
    assert counts == {"forget": 8, "forget_held_out": 2, "preserve": 16}

    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(31))
    assert "data:image/png;base64," in (run / "report.html").read_text()


def test_the_closed_form_is_the_default_and_no_worse_than_adam(run, folder, tmp_path):
    out = tmp_path / "run"
    main(arguments(folder, out, **CLOSED_FORM | {"optimizer": None}))
    ours, theirs = (read(path / "metrics.json") for path in (out, run))
    assert (ours["optimizer"], theirs["optimizer"]) == ("closed_form", "adam")
    objective = ours["objective"]
    assert objective["total"] <= theirs["objective"]["total"] * (1 + 1e-5)
    assert 0 < objective["lower_bound"] <= objective["total"]
    assert objective["gap"] == pytest.approx(objective["total"] - objective["lower_bound"])
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len(history) == objective["epoch"] + 1


def test_the_saved_adapter_changes_the_mergers_only(run, folder):
    adapter = porting.load_peft(run / "adapter")
    tower = porting.load_vision_tower(folder / "checkpoint")
    pixels = tiny.images()
    before, after = tower(pixels, tiny.GRID), tower(pixels, tiny.GRID, adapter=adapter)
    assert adapter.rank == 2
    assert not np.allclose(before.pooler_output, after.pooler_output)
    assert np.array_equal(before.last_hidden_state, after.last_hidden_state)


def test_the_saved_adapter_has_the_saved_objective_and_a_blank_image(run):
    config = read_config(run)
    extracted = QwenImages(config, QUIET).extract()
    problem, _ = problems(extracted, config.objective, config.solver.seed, held_out=False)
    adapter, weights = porting.load_peft(run / "adapter"), config.solver.loss_weights()
    total, terms = loss(adapter, problem, weights)
    objective = read(run / "metrics.json")["objective"]
    assert float(total) == pytest.approx(objective["total"], rel=1e-4)
    saved = [objective[name] for name in TERMS]
    np.testing.assert_allclose(terms, saved, rtol=1e-4, atol=1e-5)
    # Whatever the target was, there is what `blank` needs.
    kept = load_file(run / "statistics.safetensors")
    assert len(extracted.empty) == 3
    for path, row in extracted.empty.items():
        np.testing.assert_allclose(kept[f"blank.{path}"], row, rtol=1e-4, atol=1e-5)


def test_evaluating_again_gives_the_same_reading(run, folder, monkeypatch):
    again = folder / "again"
    shutil.copytree(run, again)
    with monkeypatch.context() as patch:
        # What is evaluated lies in the run's statistics: no tower is run.
        patch.setattr(porting, "load_vision_tower", None)
        main(["evaluate", str(again)])
    first, second = read(run / "metrics.json"), read(again / "metrics.json")
    assert first == second


def test_evaluating_again_without_statistics_runs_the_tower_again(run, folder):
    again = folder / "tower again"
    shutil.copytree(run, again)
    (again / "statistics.safetensors").unlink()
    main(["evaluate", str(again), "--batch-patches", "512"])
    first, second = read(run / "metrics.json"), read(again / "metrics.json")
    for key in ("forget", "preserve", "refitted", "neighbours"):
        assert first[key] == second[key]
    for path, entry in first["paths"].items():
        assert entry["readers"] == second["paths"][path]["readers"]
        assert entry["drift"] == pytest.approx(second["paths"][path]["drift"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("statistics", [True, False])
def test_evaluating_on_other_samples_is_refused(statistics, folder, tmp_path, capsys):
    for name in ("forget", "preserve"):
        shutil.copytree(folder / name, tmp_path / name)
    out, options = tmp_path / "run", {} if statistics else {"save_statistics": "no"}
    main(arguments(tmp_path, out, checkpoint=folder / "checkpoint", **options))
    before = (out / "metrics.json").read_text()
    next((tmp_path / "preserve" / "astronaut").iterdir()).unlink()
    capsys.readouterr()
    assert "its samples or its seed have changed since" in fails(["evaluate", out], capsys)
    assert (out / "metrics.json").read_text() == before


def test_the_config_of_an_earlier_run_is_read(run, tmp_path):
    """A new setting has its default; the label of a preset is not read."""
    fields = read(run / "config.json")
    assert fields.pop("linears") == ["linear_fc2"]
    assert fields.pop("sum_on") == "auto"
    assert fields.pop("count_rise") is False
    earlier = tmp_path / "config.json"
    earlier.write_text(json.dumps(fields | {"targets": "all", "preset": "default"}))
    assert read_config(tmp_path) == read_config(run)
    earlier.write_text(json.dumps(fields | {"preset": "faithful"}))
    assert read_config(tmp_path) == read_config(run).replace(count_rise=True)


def test_export_writes_peft_and_merged(run, folder, capsys):
    main(["export", str(run), "--format", "peft", "--out", str(folder / "peft")])
    first, second = (porting.load_peft(d) for d in (run / "adapter", folder / "peft"))
    for name, pair in first.pairs.items():
        assert np.array_equal(pair.b, second.pairs[name].b)
    main(["export", str(run), "--out", str(folder / "merged")])
    merged = porting.load_vision_tower(folder / "merged")
    tower = porting.load_vision_tower(folder / "checkpoint")
    pixels = tiny.images()
    ours = tower(pixels, tiny.GRID, adapter=first).pooler_output
    np.testing.assert_allclose(merged(pixels, tiny.GRID).pooler_output, ours, atol=1e-4)
    assert capsys.readouterr().out.split() == [str(folder / "peft"), str(folder / "merged")]


def test_a_merge_is_undone_and_its_checkpoint_may_have_moved(folder, tmp_path, capsys):
    place = shutil.copytree(folder / "checkpoint", tmp_path / "gone")
    main(arguments(folder, tmp_path / "run", checkpoint=place, epochs=3))
    place.rename(tmp_path / "moved")
    capsys.readouterr()
    merge = ["export", tmp_path / "run", "--out", tmp_path / "merged", "--undo", tmp_path / "undo"]
    assert "gone: no such directory" in fails(merge, capsys)
    assert not (tmp_path / "undo").exists()
    moved = ["--checkpoint", tmp_path / "moved"]
    main([str(part) for part in (*merge, *moved)])
    back = ["unmerge", tmp_path / "merged", "--undo", tmp_path / "undo", "--out", tmp_path / "back"]
    main([str(part) for part in back])
    for file in (folder / "checkpoint").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "run" / "statistics.safetensors").unlink()
    capsys.readouterr()
    assert "gone" in fails(["evaluate", tmp_path / "run"], capsys)
    main([str(part) for part in ("evaluate", tmp_path / "run", *moved)])
    tiny.model(tiny.config(), seed=1).save_pretrained(tmp_path / "other")
    capsys.readouterr()
    again = ["export", tmp_path / "run", "--out", tmp_path / "again"]
    said = fails([*again, "--checkpoint", tmp_path / "other"], capsys)
    assert "other: merger.linear_fc2" in said
    assert "changed since" in said
    peft = ["export", tmp_path / "run", "--out", tmp_path / "peft", "--format", "peft"]
    main([str(part) for part in (*peft, "--base-model", "org/name")])
    config = read(tmp_path / "peft" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "org/name"
    own = read(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert own["base_model_name_or_path"] == "gone"
    capsys.readouterr()
    said = "--undo: has no effect here: it is for --format merged, and the format is peft"
    assert said in fails([*peft, "--undo", tmp_path / "other"], capsys)


def test_settings_reach_the_run(folder):
    out = folder / "settings"
    options = {"targets": ["merger"], "target": "mean", "granularity": "images", "seed": 3}
    main(arguments(folder, out, select="held_out", **options))
    metrics, config = read(out / "metrics.json"), read(out / "config.json")
    assert metrics["adapter"]["targets"] == ["merger.linear_fc2"]
    assert {key: config[key] for key in options} == options
    main(["evaluate", str(out)])


INNER = {
    "fc1": {"linears": ["linear_fc1"], "targets": ["all"]},
    "both": {
        "linears": ["linear_fc2", "linear_fc1"],
        "targets": ["deepstack_merger_list.1", "merger", "merger"],
        "granularity": "tokens",
        "select": "held_out",
    },
}
INNER_PAIRS = {
    "fc1": {f"{name}.linear_fc1" for name in tiny.LINEARS},
    "both": {
        f"{name}.{linear}"
        for name in ("merger", "deepstack_merger_list.1")
        for linear in ("linear_fc1", "linear_fc2")
    },
}


@pytest.fixture(scope="module", params=INNER)
def inner_run(folder, request):
    """A run that adapts linear_fc1."""
    out = folder / f"inner {request.param}"
    main(arguments(folder, out, **INNER[request.param]))
    return request.param, out


def test_a_run_adapts_the_linears_that_were_asked_for(inner_run):
    name, out = inner_run
    adapter = porting.load_peft(out / "adapter")
    metrics = read(out / "metrics.json")
    assert set(adapter.pairs) == set(metrics["adapter"]["targets"]) == INNER_PAIRS[name]
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.pairs.values())
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert history[0]["preserve"] == 0
    assert history[-1]["total"] < history[0]["total"]
    assert read_config(out).objective.linears == tuple(INNER[name]["linears"])
    # A GELU lies between: no statistics of the rows will do.
    assert not (out / "statistics.safetensors").exists()


def test_evaluating_such_a_run_again_gives_the_same_reading(inner_run, folder):
    name, out = inner_run
    again = folder / f"inner {name} again"
    shutil.copytree(out, again)
    main(["evaluate", str(again)])
    first, second = read(out / "metrics.json"), read(again / "metrics.json")
    for key in ("forget", "preserve", "neighbours"):
        assert first[key] == second[key]
    for path, entry in first["paths"].items():
        assert entry["readers"] == second["paths"][path]["readers"]
        # Tokens were averaged elsewhere.
        assert entry["drift"] == pytest.approx(second["paths"][path]["drift"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("linears", [["linear_fc1"], ["linear_fc1", "linear_fc2"]])
def test_edited_embeddings_are_the_towers_own(folder, linears):
    """On some paths only, so that the others must come out as they were."""
    options = {"linears": linears, "targets": ["merger", "deepstack_merger_list.0"]}
    one = source(folder, **options)
    extracted, whole = one.extract(), tiny.adapter()
    pairs = {name: whole.pairs[name] for name in adapted_in(one.config.objective, extracted)}
    assert len(pairs) == 2 * len(linears)
    adapter = LoraAdapter(pairs, alpha=whole.alpha, rank=whole.rank)
    sides = extracted.test
    found = splits(extracted, sides, adapter)
    tower = porting.load_vision_tower(folder / "checkpoint")
    for i, file in enumerate(sides.files):
        out = tower(*one.preprocessor(read_image(file.source())), adapter=adapter)
        for merger, split in found.items():
            mean = np.asarray(out.outputs[merger]).mean(axis=0)
            assert np.abs(split.after[i] - mean).max() <= 1e-5 * np.abs(mean).max()
    moved = {merger for merger, s in found.items() if not np.array_equal(s.before, s.after)}
    assert moved == {"merger", "deepstack_merger_list.0"}


def test_the_faithful_preset_is_the_published_scheme(folder):
    out = folder / "faithful"
    main(arguments(folder, out, preset="faithful"))
    config = read(out / "config.json")
    faithful = {"targets": ["merger"], "linears": ["linear_fc2"], "target": "random"}
    faithful |= {
        "granularity": "tokens",
        "reduction": "sum",
        "lambda_forget": 1.3,
        "lambda_preserve": 0.4,
    }
    assert {key: config[key] for key in faithful} == faithful
    # The scale stays 1 at any rank.
    assert read(out / "metrics.json")["adapter"]["alpha"] == 2.0
    # Options given beside the preset win, even where they are our own defaults.
    assert (config["rank"], config["epochs"]) == (2, 30)
    mixed = parse(arguments(folder, folder / "mixed", preset="faithful", target="near"))
    assert (mixed.objective.target, mixed.solver.reduction) == ("near", "sum")
    # What a run records are the values that it had; the preset is no setting.
    assert "preset" not in config


def test_a_concept_splits_one_folder(folder, tmp_path):
    images, kept = tmp_path / "images", ("red circle", "blue triangle", "astronaut")
    for name in ("red triangle", *kept):
        (images / name).mkdir(parents=True)
        for file in sorted((ASSETS / "images" / "test" / name).iterdir())[:10]:
            shutil.copy(file, images / name)
    out, both = tmp_path / "run", {"forget": images, "preserve": images}
    main(arguments(folder, out, **both, concept="red triangle"))
    counts = read(out / "metrics.json")["samples"]
    assert counts["forget"] + counts["forget_held_out"] == 10
    assert counts["preserve"] + counts["preserve_held_out"] == 10 * len(kept)


def test_a_run_killed_by_its_loss_keeps_the_last_good_adapter(folder, capsys):
    out = folder / "exploded"
    assert fails(arguments(folder, out, learning_rate=1e25), capsys).count("not finite") == 1
    assert read(out / "metrics.json")["stopped"]
    assert porting.load_peft(out / "adapter").rank == 2


def fails(command, capsys):
    """The single line that a command which exits 2 says, but for its rows and warnings."""
    with pytest.raises(SystemExit) as exit:
        main([str(part) for part in command])
    assert exit.value.code == 2
    *begun, line = capsys.readouterr().err.splitlines()
    assert line.startswith("jax-unlearn: ")
    assert all(
        ": to forget " in said or said.startswith(("warning: ", "target near: ")) for said in begun
    )
    return line


def no_such_folder(path):
    return {"forget": path / "nowhere"}, "nowhere: no such folder"


def empty_folder(path):
    (path / "empty").mkdir()
    return {"preserve": path / "empty"}, "empty: no images here"


def not_a_checkpoint(path):
    (path / "checkpoint" / "config.json").unlink()
    return {}, "config.json: no such file"


def text_only(path):
    edit(path, lambda tensors: {k: v for k, v in tensors.items() if "visual" not in k})
    return {}, "holds no vision tensor"


def missing_tensor(path):
    edit(path, lambda tensors: {k: v for k, v in tensors.items() if "blocks.1.norm1.bias" not in k})
    return {}, "model.visual.blocks.1.norm1.bias is missing"


def wrong_shape(path):
    key = "model.visual.merger.norm.weight"
    edit(path, lambda tensors: tensors | {key: np.ones(5, np.float32)})
    return {}, "merger.norm.weight has shape [5], expected [32]"


def truncated_shard(path):
    file = path / "checkpoint" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return {}, "model.safetensors cannot be read"


def index_outside(path):
    index = {"weight_map": {"model.visual.merger.norm.weight": "../model.safetensors"}}
    (path / "checkpoint" / "model.safetensors.index.json").write_text(json.dumps(index))
    return {}, "'../model.safetensors', which is not a file of this directory"


def header_of_nonsense(path):
    (path / "checkpoint" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    return {}, "model.safetensors cannot be read"


def no_processor(path):
    (path / "checkpoint" / "preprocessor_config.json").unlink()
    return {}, "preprocessor_config.json: no such file"


def another_processor(path):
    file = path / "checkpoint" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"patch_size": 4', '"patch_size": 8'))
    return {}, "patch size are [8, 2, 2]"


def broken_image(path):
    file = next((path / "forget" / "red triangle").iterdir())
    file.write_bytes(file.read_bytes()[:60])
    return {"strict": None}, f"{file.name}: cannot be read"


def one_image_only(path):
    for file in sorted((path / "forget" / "red triangle").iterdir())[1:]:
        file.unlink()
    return {}, "one image"


def same_image_twice(path):
    file = next((path / "forget" / "red triangle").iterdir())
    shutil.copy(file, path / "preserve" / "blue circle" / "copy.png")
    return {}, "the same image as"


def same_class_twice(path):
    (path / "preserve" / "astronaut").rename(path / "preserve" / "red triangle")
    return {}, "both have a class 'red triangle'"


def output_exists(path):
    (path / "run").mkdir()
    (path / "run" / "metrics.json").write_text("kept")
    return {}, "--overwrite"


def output_is_not_ours(path):
    (path / "mine").mkdir()
    (path / "mine" / "config.json").touch()
    return {"out": path / "mine", "overwrite": None}, "not made by jax-unlearn"


def no_questions(path):
    return {"questions": path / "nowhere.json"}, "nowhere.json"


def wrong_config(path):
    file = path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["num_heads"] = 5
    file.write_text(json.dumps(config))
    return {}, "num_heads"


def config_of_another_type(path):
    file = path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["depth"] = "three"
    file.write_text(json.dumps(config))
    return {}, "config.json"


def unknown_concept(path):
    return {"concept": "unicorn"}, "no class is 'unicorn'"


def rank_too_large(path):
    return {"rank": 1000}, "--rank 1000"


def rank_too_large_for_the_first_linear(path):
    return {"rank": 129, "linears": ["linear_fc1"]}, "from 1 to 128 for merger.linear_fc1"


def unknown_merger(path):
    names = "all, merger, deepstack_merger_list.0, deepstack_merger_list.1"
    return {"targets": ["merger", "visual"]}, f"--targets visual: must be any of {names}"


def no_merger(path):
    return {"targets": None}, "--targets: give at least one of all, merger, "


def no_linear(path):
    return {"linears": None}, "--linears: give at least one of linear_fc1, linear_fc2"


def edit(path, change):
    file = path / "checkpoint" / "model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    "spoil",
    [
        no_such_folder,
        empty_folder,
        not_a_checkpoint,
        text_only,
        missing_tensor,
        wrong_shape,
        truncated_shard,
        index_outside,
        header_of_nonsense,
        no_processor,
        another_processor,
        broken_image,
        one_image_only,
        same_image_twice,
        same_class_twice,
        output_exists,
        output_is_not_ours,
        no_questions,
        wrong_config,
        config_of_another_type,
        unknown_concept,
        rank_too_large,
        rank_too_large_for_the_first_linear,
        unknown_merger,
        no_merger,
        no_linear,
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(spoil, folder, tmp_path, capsys):
    for name in ("checkpoint", "forget", "preserve"):
        shutil.copytree(folder / name, tmp_path / name)
    options, expected = spoil(tmp_path)
    flags = [f"--{name}" for name, value in options.items() if value is None]
    options = {name: value for name, value in options.items() if value is not None}
    before = sorted(tmp_path.rglob("*"))
    command = arguments(tmp_path, options.pop("out", tmp_path / "run"), **options) + flags
    assert expected in fails(command, capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_patches": 1000}, "--batch-patches 1000: must be a power of two"),
        ({"batch_patches": 128}, "--batch-patches 128: must be a power of two from 256"),
        ({"keep_means": 0}, "--keep-means 0: must be at least 1"),
        ({"workers": -1}, "--workers -1: too small"),
        ({"save_steps": 0}, "--save-steps 0: too small"),
        ({"processes": 2}, "--processes: has no effect here: it needs --distributed"),
        ({"distributed": [], "processes": 2}, "give all three, or none"),
        ({"mesh": "fsdp=2"}, "--mesh fsdp=2: must be data=N or data=N,fsdp=M"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_line(options, expected, folder, tmp_path, capsys):
    assert expected in fails(arguments(folder, tmp_path / "run", **options), capsys)
    assert not any(tmp_path.iterdir())


def test_a_broken_image_is_skipped_and_named_without_strict(folder, tmp_path):
    for name in ("forget", "preserve"):
        shutil.copytree(folder / name, tmp_path / name)
    file = next((tmp_path / "preserve" / "astronaut").iterdir())
    file.write_text("not an image")
    main(arguments(tmp_path, tmp_path / "run", checkpoint=folder / "checkpoint"))
    assert read(tmp_path / "run" / "metrics.json")["samples"]["skipped"][0].startswith(f"{file}: ")
    assert file.name in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--out", "x"]])
def test_a_directory_that_is_no_run(command, tmp_path, capsys):
    assert "config.json" in fails([command[0], tmp_path, *command[1:]], capsys)


def test_inspect_answers_the_three_questions(folder, capsys):
    main(["inspect", str(folder / "checkpoint"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["last layer"] == "model.visual.blocks.2"
    assert facts["mergers"]["model.visual.merger"].startswith("blocks.2 → norm → 2×2 merge")
    assert facts["mergers"]["model.visual.deepstack_merger_list.0"].startswith("blocks.0 → 2×2")
    assert facts["adaptable Linears"]["merger.linear_fc2"] == "128 → 24"
    assert (facts["D (hidden_size)"], facts["E (out_hidden_size)"]) == (32, 24)
    tensors = load_file(folder / "checkpoint" / "model.safetensors")
    vision = sum(x.size for key, x in tensors.items() if "visual" in key)
    assert facts["parameters"] == {"vision": vision, "all": sum(x.size for x in tensors.values())}
    main(["inspect", str(folder / "checkpoint")])
    assert "last layer: model.visual.blocks.2" in capsys.readouterr().out


def test_inspect_says_what_a_run_will_refuse(folder, tmp_path, capsys):
    checkpoint = shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    (checkpoint / "preprocessor_config.json").unlink()
    main(["inspect", str(checkpoint)])
    assert "reads images: no: " in capsys.readouterr().out
    tensors = load_file(checkpoint / "model.safetensors")
    key = "model.visual.blocks.1.norm1.weight"
    save_file(tensors | {key: np.full_like(tensors[key], np.nan)}, checkpoint / "model.safetensors")
    assert f"{key} holds values that are not finite" in fails(["inspect", checkpoint], capsys)


WITHOUT_TORCH = """
import sys
import jax_unlearn, porting
assert not {"torch", "transformers", "peft"} & set(sys.modules)
from jax_unlearn.runs.cli import main
main(sys.argv[1:])
assert sys.modules.get("torch") is None
"""


def test_a_run_never_imports_torch(folder, tmp_path):
    command = arguments(folder, tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_help_of_every_command(capsys):
    for command in (
        [],
        ["demo"],
        ["inspect"],
        ["run"],
        ["evaluate"],
        ["export"],
        ["unmerge"],
        ["compare"],
    ):
        with pytest.raises(SystemExit) as exit:
            main([*command, "--help"])
        assert not exit.value.code
