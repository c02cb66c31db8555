"""The command attack: attack an edited model, with controls, and write attacks.json."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional

import porting
from jax_unlearn.attacks.record import FILE, read_record
from jax_unlearn.attacks.registry import Attack, Trial, chosen
from jax_unlearn.attacks.summary import strongest
from jax_unlearn.attacks.target import AttackedRun, Budget
from jax_unlearn.data.preprocess import load_preprocessor
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.commands import extracted_again
from jax_unlearn.runs.run_directory import check_run, save_report
from jax_unlearn.runs.settings.checks import optimizer_of, source_of
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.digests import of_file, read_sealed, sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.outputs import ADAPTER
from jax_unlearn.runtime.progress import progress_bar
from jax_unlearn.runtime.version import VERSION

SEEDS = {"small": 1, "full": 3}
# What an edit cannot prevent, whatever the attacks find.
LIMITS = (
    "Whoever has the weights can put the original projector back, which undoes any edit of them.",
    "A reader before the Merger finds what it found before: the ViT is unchanged.",
)
# Which attackers the fit optimises against, by solver.
OPTIMISED_AGAINST = {
    STAND_IN: "readers of the mean and the covariance of embeddings and tokens, which are matched "
    "to those of the stand-in class",
    "leace": "linear readers of the training images' embeddings",
}


@dataclass(frozen=True)
class AttackOptions:
    """Attack the edited model, with controls: readers, changed images, relearning and others."""

    run: Positional[Path]
    """Directory of a run."""
    kinds: tuple[str, ...] = ()
    """Attacks by name; by default all."""
    budget: Budget = "small"
    """How much the attacker spends: small takes minutes on the bundled model, full an hour."""
    seeds: int | None = None
    """Number of seeds for what is random; by default 1 with the small and 3 with the full
    budget."""
    again: bool = False
    """Measure again what attacks.json already has."""
    checkpoint: Path | None = None
    """Where the run's checkpoint is now, if it was moved."""


def attack(options: AttackOptions, console: Console) -> dict[str, Any]:
    """Run the attacks that attacks.json does not have yet, and write it after each trial.

    Returns:
        The content of attacks.json.

    Raises:
        UserError: bad input, an attack that was asked for cannot be run, or attacks.json is of
            other options.
    """
    attacks = chosen(options.kinds)
    if seeds_of(options) < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    config = read_config(options.run)
    if options.checkpoint is not None:
        config = config.replace(checkpoint=options.checkpoint)
    if source_of(config.samples) == "clip_names":
        raise UserError(
            f"{options.run}: forgets names through CLIP's text side, and the attacks are on images"
        )
    report = opened(options, config)
    run = attacked_run(options, config, console)
    if run.extracted.kind == "qwen_images":
        fit, test = run.split(0)
        report["images"] = {"fitted": fit.counts, "tested": test.counts}
    able = [one for one in attacks if available(one, run, options.kinds, report)]
    pending = [
        (one, trial)
        for one in able
        for trial in planned(one, run, report)
        if trial.name not in report["attacks"][one.name]["done"]
    ]
    with progress_bar(console) as bar:
        task = bar.add_task("Attacks", total=len(pending))
        for one, trial in pending:
            bar.update(task, description=f"{one.name}: {trial.name}")
            measure(trial, report["attacks"][one.name])
            save(options.run, report)
            bar.advance(task)
    save(options.run, report)
    pictures = judge_of(run.extracted, config.samples).pictures()
    save_report(options.run, config, pictures if config.execution.pictures else [])
    return report


def seeds_of(options: AttackOptions) -> int:
    return SEEDS[options.budget] if options.seeds is None else options.seeds


def attacked_run(options: AttackOptions, config: RunConfig, console: Console) -> AttackedRun:
    """A run, ready to be attacked.

    Raises:
        UserError: the run, its checkpoint or its images are missing or have changed.
    """
    adapter = check_run(options.run, config)
    metrics = read_sealed(options.run / "metrics.json")
    print("reading the run's features", file=sys.stderr)
    extracted = extracted_again(options.run, config, metrics["samples"]["fingerprint"], {}, console)
    return AttackedRun(
        checkpoint=local_checkpoint(config.samples.checkpoint, "all"),
        adapter_dir=options.run / ADAPTER,
        adapter=adapter,
        extracted=extracted,
        questions_file=config.samples.questions,
        extraction=config.extraction,
        tower_and_preprocessor=lambda: tower_and_preprocessor(config),
        budget=options.budget,
        seeds=tuple(range(seeds_of(options))),
    )


def opened(options: AttackOptions, config: RunConfig) -> dict[str, Any]:
    """attacks.json of the run, or an empty one.

    Raises:
        UserError: the file was changed, has another form, or is of other options.
    """
    facts = {
        "version": VERSION,
        "adapter": of_file(options.run / ADAPTER / "adapter_model.safetensors"),
        "budget": options.budget,
        "seeds": seeds_of(options),
    }
    path = options.run / FILE
    found = read_record(options.run)
    if found and options.again and found["of"] == facts:
        # Other kinds keep what was measured.
        for one in chosen(options.kinds):
            found["attacks"].pop(one.name, None)
        return found
    if found and not options.again:
        for name, value in facts.items():
            if found["of"][name] != value:
                raise UserError(
                    f"{path}: was measured with {name} {found['of'][name]}, not {value}; pass "
                    "--again to measure everything again"
                )
        return found
    kind = optimizer_of(config)
    return {
        "of": facts,
        "optimised_against": OPTIMISED_AGAINST.get(kind, "none"),
        "limits": list(LIMITS),
        "attacks": {},
        "not_run": {},
    }


def available(
    one: Attack, run: AttackedRun, asked_for: Sequence[str], report: dict[str, Any]
) -> bool:
    """Whether an attack can be run; if not, its reason is recorded.

    Raises:
        UserError: it cannot, and was asked for by name.
    """
    reason = run.cannot_be_asked if one.needs_torch else None
    report["not_run"].pop(one.name, None)
    if reason is None:
        return True
    if one.name in asked_for:
        raise UserError(f"--kinds {one.name}: {reason}")
    report["not_run"][one.name] = reason
    return False


def planned(one: Attack, run: AttackedRun, report: dict[str, Any]) -> list[Trial]:
    """The attack's trials; its description is added to the report."""
    trials = list(one.trials(run))
    measured = report["attacks"].get(one.name, {"done": [], "seconds": 0.0, "rows": []})
    # Some trials depend on what is installed, which may be more than before.
    report["attacks"][one.name] = measured | {
        "does": one.does,
        "budget": one.budget[run.budget],
        "controls": dict(one.controls),
        "left_out": one.left_out(run),
        "trials": len(trials),
    }
    return trials


def measure(trial: Trial, found: dict[str, Any]) -> None:
    """Run a trial and add its rows."""
    begun = time.perf_counter()
    common = {"subject": trial.subject, "setting": dict(trial.setting), "seed": trial.seed}
    found["rows"] += [{**common, **row} for row in trial.measure()]
    found["done"].append(trial.name)
    found["seconds"] += time.perf_counter() - begun


def save(run_dir: Path, report: dict[str, Any]) -> None:
    """Write attacks.json with the strongest setting of each attack."""
    for found in report["attacks"].values():
        best = strongest(found["rows"])
        found["strongest"] = best and {
            "setting": dict(best.setting),
            "edited": dict(best.edited),
            "controls": {name: dict(row) for name, row in best.controls.items()},
        }
        found["says_nothing"] = list(best.says_nothing) if best else []
    replace_files(run_dir, {FILE: sealed(report)})


def tower_and_preprocessor(config: RunConfig) -> tuple[Qwen3VisionTower, Any]:
    """The original tower, and the checkpoint's image processor."""
    checkpoint, extraction = config.samples.checkpoint, config.extraction
    tower = porting.load_vision_tower(checkpoint, extraction.dtype)
    return tower, load_preprocessor(checkpoint, tower.config, extraction.max_pixels)
