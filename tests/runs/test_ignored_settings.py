"""Every setting, in every mode of a run, either changes what comes out or is refused by name.

The settings come from the dataclasses: a new one without a value here fails the test.
"""

import hashlib
import json
import shutil
from dataclasses import fields
from functools import cache, cached_property
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from jax_unlearn.evaluate import reidentification
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.features.statistics_file import feature_arrays
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.pipeline import open_source, run
from jax_unlearn.runs.settings.config import ExecutionSettings, RunConfig, SolverSettings, build
from jax_unlearn.runs.settings.presets import start_settings
from jax_unlearn.runs.settings.sweep_config import SweepConfig, SweepSettings
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import leaf_fields, option
from tests import tiny

# Said of folders that are not those of a mode's names, which some settings are tried with.
pytestmark = [
    pytest.mark.usefixtures("small_batches"),
    pytest.mark.filterwarnings("ignore:.* has no images of "),
    pytest.mark.filterwarnings("ignore:.*left out sub-folders that are not among the names"),
]
QUIET = Console(quiet=True)
# What these are for is not the adapter or the metrics.
OTHERWISE = {
    "batch_patches": "memory of a pass",
    "chunk": "how often progress shows",
    "questions": "recorded for `evaluate --vlm`",
    "checkpoint": "needs another checkpoint, whose weights are read",
    "statistics": "is a mode of its own here",
    "forget_text": "is a mode of its own here",
    "auto": "is a mode of its own here",
}
# Another value than the default of every setting; paths are made by the fixture.
VALUES = {
    "preserve_text": ("blue circle", "cat"),
    "train_templates": ("{}", "a drawing of a {}"),
    "template": "one {}",
    "concept": "red triangle",
    "granularity": "tokens",
    "max_pixels": 256,
    "dtype": "bfloat16",
    "keep_means": 3,
    "sum_on": "device",
    "targets": ("merger",),
    "linears": ("linear_fc1",),
    "target": "shift",
    "near_step": 0.7,
    "stand_in": "red circle",
    "strength": "strong",
    "rank": 2,
    "alpha": 3.0,
    "lambda_forget": 2.0,
    "lambda_preserve": 0.3,
    "lambda_weight": 0.2,
    "reduction": "sum",
    "learning_rate": 0.02,
    "epochs": 7,
    "select": "held_out",
    "seed": 3,
    "iterations": 1,
    "tolerance": 10.0,
    "starts": 4,
    "optimizer": "leace",
    "count_rise": True,
}
# Settings of how a run is carried out, which must not change the adapter.
EXECUTION = {
    "overwrite": True,
    "base_model": "org/name",
    "strict": True,
    "save_statistics": "no",
    "pictures": False,
    "mesh": "data=1",
    "workers": 1,
    "resume": True,
    "save_seconds": 1.0,
    "save_steps": 3,
    "distributed": True,
    "coordinator": "localhost:1",
    "process_id": 0,
    "processes": 1,
    "track": ("tensorboard",),
    "heartbeat_seconds": 5,
    "wait_seconds": 5.0,
}
QWEN = ("qwen closed_form", "qwen adam", "qwen leace", "qwen stand_in")
CLIP = ("names closed_form", "names adam", "names leace", "clip closed_form", "clip leace")
OTHER_WEIGHTS = {
    "names": {"lambda_forget": 0.7, "lambda_preserve": 0.6},
    "clip": {"lambda_weight": 0.1},
}
MODES = (*QWEN, *CLIP, "saved closed_form", "saved adam")
SHAPES = ("red triangle", "green triangle", "blue circle", "red circle")


@pytest.fixture(autouse=True)
def one_draw(monkeypatch):
    """One draw of labelled images shows whether a result changes as well as five."""
    monkeypatch.setattr(reidentification, "DRAWS", 1)


@pytest.fixture(scope="module")
def places(tiny_dir, tmp_path_factory):
    """Folders of a few images, and a run to go on from."""
    root = tmp_path_factory.mktemp("settings")
    shutil.copytree(tiny_dir, root / "checkpoint")
    tiny.save_processor(root / "checkpoint", 256, 1024)
    sides = {"forget": SHAPES[:2], "preserve": SHAPES[2:], "others": ("astronaut", "cat")}
    for side, classes in sides.items():
        for number, name in enumerate(classes):
            folder = root / side / name
            folder.mkdir(parents=True)
            files = sorted((ASSETS / "images" / "train" / name).iterdir())
            for file in files[10 * number : 10 * number + 6]:
                shutil.copy(file, folder / file.name)
    for split, classes in {"test": SHAPES, "drawings": (SHAPES[0], "cat")}.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            files = sorted((CLIP_ASSETS / "images" / "test" / name).iterdir())
            for file in files[:3] if split == "test" else files[3:6]:
                shutil.copy(file, folder / file.name)
    run(base_of("qwen closed_form", root).replace(out=root / "run"), QUIET)
    return root


def base_of(mode, root):
    """The settings that a mode starts from."""
    kind, optimizer = mode.split()
    more = {"epochs": 12, "optimizer": "adam"} if optimizer == "adam" else {}
    more |= {"optimizer": "leace"} if optimizer == "leace" else {}
    more |= {"target": "stand_in", "rank": 3} if optimizer == "stand_in" else {}
    if optimizer == "closed_form":
        # With the default weights, a later iteration or start is no better than the first.
        more |= OTHER_WEIGHTS.get(kind, {})
    if kind == "saved":
        return start_settings(statistics=root / "run", out=root / "x").replace(**more)
    checkpoint = (root if kind == "qwen" else CLIP_ASSETS) / "checkpoint"
    if kind == "names":
        start = start_settings(checkpoint=checkpoint, out=root / "x", forget_text=SHAPES[:1])
        more |= {"preserve_text": SHAPES[1:], "images": root / "test"}
    else:
        start = start_settings(checkpoint=checkpoint, out=root / "x")
        more |= {"forget": root / "forget", "preserve": root / "preserve"}
    return start.replace(**more)


def other_value(name, base, root):
    if name == "until_forgotten":
        # A little more than is forgotten without it, so that λ is raised once or twice.
        return max(0.01, (1 + 9 * fall_of(base)) / 10)
    folders = {
        "forget": root / "others",
        "preserve": root / "others",
        "forget_held_out": root / "forget-held-out",
        "preserve_held_out": root / "preserve-held-out",
        "images": root / "drawings",
        "other_images": (root / "drawings",),
        "names": root / "names.tsv",
    }
    folders["names"].write_text("red circle\tblue circle\n")
    if name in ("forget_held_out", "preserve_held_out"):
        # Other images of the same classes.
        side, classes = (name.split("_")[0], SHAPES[:2] if "forget_" in name else SHAPES[2:])
        for one in classes:
            folder = folders[name] / one
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted((ASSETS / "images" / "test" / one).iterdir())[:4]:
                shutil.copy(file, folder / f"{side}-{file.name}")
    if name == "optimizer" and base.solver.optimizer == "leace":
        return "closed_form"
    return folders.get(name, VALUES.get(name))


@cache
def extracted_of(config):
    return open_source(config, QUIET, start=config).extract()


class Output:
    """What comes out of a run: the adapter and the features, and what is measured on them.

    It is measured where the rest is the same, for that takes longer than all of the rest.
    """

    def __init__(self, config, extracted):
        self.found = fit_adapter(extracted, config, QUIET).found
        self.judge = judge_of(extracted, config.samples)
        test = {"forget": extracted.test.forget, "preserve": extracted.test.preserve}
        arrays = [*jax.tree.leaves(self.found.result.adapter)]
        for name, features in {**test, **extracted.judged}.items():
            arrays += feature_arrays(name, features).values()
        total = hashlib.sha256(json.dumps(self.found.trials, sort_keys=True).encode())
        for array in arrays:
            total.update(np.asarray(array).tobytes())
        self.digest = total.hexdigest()

    @cached_property
    def measured(self):
        return self.judge.evaluate(self.found.result.adapter)

    def __eq__(self, other):
        return self.digest == other.digest and self.measured == other.measured


def fall_of(config):
    return fit_adapter(extracted_of(config), config, QUIET).found.fall


FITTED_ONLY = {*leaf_fields(SolverSettings), "target", "near_step", "targets", "strength"}
FITTED_ONLY -= {"seed", "select"}
SOLVED = FITTED_ONLY | {"seed", "select", "stand_in"}
# Of each kind of source, the mode in which samples and extraction are tried too.
FIRST = ("qwen closed_form", "names closed_form", "clip closed_form", "saved closed_form")
NAMES = [name for name in leaf_fields(RunConfig) if name not in leaf_fields(ExecutionSettings)]


@pytest.mark.parametrize("mode", MODES)
def test_every_setting_changes_the_result_or_is_refused(mode, places):
    base = base_of(mode, places)
    before, silent, said = Output(base, extracted_of(base)), [], {}
    for name in NAMES:
        if name in OTHERWISE:
            continue
        if name == "until_forgotten" and fall_of(base) == 1.0:
            # Already there: no λ need be raised.
            continue
        changed = base.replace(**{name: other_value(name, base, places)})
        if (mode, name) == ("qwen closed_form", "linears"):
            # Which is trained by Adam.
            changed = changed.replace(epochs=12)
        assert changed != base, f"{name}: the value here is the mode's own"
        try:
            source = open_source(changed, QUIET, start=base)
            if mode not in FIRST and name not in SOLVED:
                # Features do not depend on the solver: the first mode of the kind has shown it.
                continue
            # Only for that target are there stand-in images.
            same = (changed.objective.target == STAND_IN) == (base.objective.target == STAND_IN)
            shared = name in FITTED_ONLY and same
            after = Output(changed, extracted_of(base) if shared else source.extract())
        except UserError as error:
            said[name] = str(error)
            continue
        if after == before:
            silent.append(name)
    assert not silent
    # linear_fc1 is refused by the solver that cannot adapt it.
    names = {"linears": ("--linears", "linear_fc1")}
    unnamed = {
        name: text
        for name, text in said.items()
        if not any(one in text for one in names.get(name, (option(name),)))
    }
    assert not unnamed


def test_every_setting_has_a_value_here(places):
    known = {*VALUES, *OTHERWISE, "forget", "preserve", "forget_held_out", "preserve_held_out"}
    known |= {"until_forgotten"}
    assert {*NAMES} == known | {"images", "other_images", "names"}
    assert {*leaf_fields(ExecutionSettings)} == {*EXECUTION, "out"}


# Used wherever a run is; the rest of them say where they are.
ALWAYS = {"base_model", "overwrite", "resume", "track"}


@pytest.mark.parametrize("mode", MODES)
def test_how_a_run_is_carried_out_is_refused_where_it_has_no_part(mode, places):
    base = base_of(mode, places)
    kind, optimizer = mode.split()
    used = ALWAYS | {"save_statistics"}
    if kind != "names" or base.samples.images:
        used |= {"pictures"}
    if kind == "qwen":
        used |= {"mesh", "workers", "distributed"}
    if kind == "qwen" or optimizer == "adam":
        used |= {"save_seconds", "save_steps"}
    if kind != "saved":
        used |= {"strict"}
    for name, value in EXECUTION.items():
        changed = base.replace(**{name: value})
        if name in used:
            open_source(changed, QUIET, start=base)
            continue
        with pytest.raises(UserError, match=f"{option(name)}: has no effect here"):
            open_source(changed, QUIET, start=base)


def test_the_last_iteration_of_the_closed_form_is_its_best(places):
    base = base_of("qwen closed_form", places)
    with pytest.raises(UserError, match="--select last: has no effect here"):
        open_source(base.replace(select="last"), QUIET, start=base)


SWEPT = {
    "target_kinds": ("near", "twin"),
    "lambda_forgets": (0.5,),
    "lambda_preserves": (0.5,),
    "lambda_weights": (0.5, 2.0),
    "learning_rates": (0.1,),
    "ranks": (2, 3),
    "seeds": (1,),
    "sample": 3,
}
# How a sweep chooses: tested in test_sweep.
CHOOSING = {"forget_at_most", "prefer"}


@pytest.mark.parametrize("optimizer", ["closed_form", "adam"])
def test_every_setting_of_a_sweep_changes_what_is_tried_or_is_refused(optimizer, places):
    base = build(SweepConfig, {"optimizer": optimizer}, base_of("qwen closed_form", places))
    tried = base.settings("qwen_images", optimizer)
    assert {field.name for field in fields(SweepSettings)} == {*SWEPT} | CHOOSING
    for name, value in SWEPT.items():
        changed = base.replace(**{name: value})
        if name == "learning_rates" and optimizer == "closed_form":
            with pytest.raises(UserError, match=f"{option(name)}: has no effect here"):
                open_source(changed, QUIET, start=base)
            continue
        open_source(changed, QUIET, start=base)
        assert changed.settings("qwen_images", optimizer) != tried
    assert len({str(one) for one in tried}) == len(tried)


@pytest.mark.parametrize("command", ["sweep", "auto"])
@pytest.mark.parametrize("name", ["lambda_forget", "lambda_preserve", "rank"])
def test_a_setting_that_a_sweep_tries_is_refused_beside_it(command, name, places):
    base = base_of("qwen closed_form", places)
    base = build(SweepConfig, {}, base) if command == "sweep" else base.replace(auto=True)
    with pytest.raises(UserError, match=f"{option(name)}: has no effect here: the sweep tries"):
        open_source(base.replace(**{name: VALUES[name]}), QUIET, start=base)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("inspect {checkpoint} --fsdp 2", "--fsdp: has no effect here: it needs --plan"),
        ("inspect {checkpoint} --dtype float32", "--dtype: has no effect here: it needs --plan"),
        ("evaluate {run} --questions q.json", "--questions: has no effect here: it needs --vlm"),
        ("evaluate {run} --device cpu", "--device: has no effect here: it needs --vlm"),
        ("evaluate {run} --max-new-tokens 9", "--max-new-tokens: has no effect here: it needs"),
        ("evaluate {run} --mesh data=1", "--mesh: has no effect here: no tower is run"),
        ("evaluate {run} --workers 1", "--workers: has no effect here: no tower is run"),
        ("evaluate {run} --batch-patches 512", "--batch-patches: has no effect here: no tower"),
        ("sweep {images} --preset faithful", "--preset: a sweep tries its own λ's and ranks"),
        ("run {images} --auto --preset faithful", "--preset: a sweep tries its own λ's"),
        ("run --statistics {run} --preset faithful", "--preset: --statistics starts from the"),
        ("run {images} --preset clip-rn50", "--preset clip-rn50: is for names"),
        ("run --config {run}/config.json --preset faithful", "--preset: --config starts from the"),
        ("run --config {run}/config.json --statistics {run}", "--statistics: --config starts from"),
    ],
)
def test_options_of_commands_without_effect_are_refused(command, said, places, capsys):
    images = f"--checkpoint {places / 'checkpoint'} --forget {places / 'forget'} "
    images += f"--preserve {places / 'preserve'}"
    line = command.format(checkpoint=places / "checkpoint", run=places / "run", images=images)
    if line.startswith(("run", "sweep")):
        line += f" --out {places / 'never'}"
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not Path(places / "never").exists()
