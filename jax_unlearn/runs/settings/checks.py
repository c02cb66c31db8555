"""Refuse settings that would have no effect, or whose values are out of range.

Every setting declares when it has an effect (`used_if`). This module compares those conditions with
the facts of a command.
"""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import porting
from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.features.statistics_file import read_statistics, statistics_kind
from jax_unlearn.models.clip.model import LINEARS as PROJECTIONS
from jax_unlearn.objective.merger import FIRST
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.settings.config import RunConfig, Solver, build, flat
from jax_unlearn.runs.settings.sweep_config import TRIES, SweepConfig, sweep_of
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.used_if import conditions_of, leaf_fields, option
from jax_unlearn.solvers.config import MOST
from jax_unlearn.solvers.config import check_values as check_solver
from jax_unlearn.solvers.grid import refuse_held_out
from porting.adaptable_linears import read_model_type
from porting.clip import clip_projections
from porting.families import CLIPS

SMALLEST_BATCH, LARGEST_BATCH = 256, 2**24
OF_SOURCE: dict[str, str] = {
    "qwen_images": "images through a Qwen tower",
    "clip_images": "images through CLIP",
    "clip_names": "names (--forget-text)",
}
# Why a setting has no effect, for facts that are true or false.
REASONS: dict[str, str] = {
    "saved": "no tower is run with --statistics",
    "sweep": "a sweep tries its own λ's",
    "distributed": "it needs --distributed",
    "until_forgotten": "it needs --until-forgotten",
    "adapts_fc1": "no statistics are saved where linear_fc1 is adapted",
    "resumable": "this run saves no snapshots",
    "reads_images": "this run reads no image",
    "shows_images": "this run has no image to show",
    "vlm": "it needs --vlm",
    "plan": "it needs --plan",
    "figures": "no figure is computed again with --no-figures",
    "strength": "--strength sets it",
    "whole_images": "--target stand_in uses image means and tokens",
    "draws": "LEACE draws nothing, and nothing is held out with the seed",
    "command": "it is not an option of this command",
}


def source_of(samples: SampleSettings) -> SourceKind:
    """The kind of samples to forget: images for a Qwen3 tower or for CLIP, or names for CLIP."""
    if samples.forget_text:
        return "clip_names"
    if samples.statistics:
        # The checkpoint may no longer exist.
        return statistics_kind(samples.statistics)
    return "clip_images" if porting.is_clip(samples.checkpoint) else "qwen_images"


def has_requests(samples: SampleSettings) -> bool:
    """Whether the statistics are those of a ledger's run."""
    assert samples.statistics is not None
    return read_statistics(samples.statistics).facts["requests"] is not None


def optimizer_of(config: RunConfig) -> Solver:
    """The chosen solver; by default the closed form, or Adam if linear_fc1 is adapted."""
    if config.objective.target == STAND_IN:
        return "stand_in"
    adapts_fc1 = FIRST in config.objective.linears
    return config.solver.optimizer or ("adam" if adapts_fc1 else "closed_form")


def facts_of(config: RunConfig) -> dict[str, Any]:
    """The facts of a run that the conditions of settings refer to."""
    samples = config.samples
    source, optimizer = source_of(samples), optimizer_of(config)
    saved = samples.statistics is not None
    fresh_tower = source == "qwen_images" and not saved
    names_alone = source == "clip_names" and not (samples.images or samples.other_images)
    split = samples.forget_held_out is None or samples.preserve_held_out is None
    fixed = source == "clip_names" or saved or (source == "clip_images" and not split)
    return {
        "source": source,
        "optimizer": optimizer,
        "target": config.objective.target_kind,
        "strength": config.objective.strength,
        "whole_images": config.objective.target == STAND_IN,
        "saved": saved,
        "distributed": config.execution.distributed,
        "until_forgotten": config.solver.until_forgotten is not None,
        "adapts_fc1": FIRST in config.objective.linears,
        # Requests are fitted without snapshots, which are of one fit.
        "resumable": fresh_tower or (optimizer == "adam" and not (saved and has_requests(samples))),
        "reads_images": not (saved or names_alone),
        "shows_images": source != "clip_names" or samples.images is not None,
        "draws": not (optimizer == "leace" and fixed),
        "sweep": sweep_of(config) is not None,
        "command": "sweep" if isinstance(config, SweepConfig) else "run",
    }


def refuse_unused(settings: Any, facts: Mapping[str, Any], start: Any) -> None:
    """Refuse settings that were changed but would have no effect.

    Args:
        settings: a dataclass of settings, or of groups of settings.
        facts: the facts of the command.
        start: an instance of the same class that the user's settings started from.

    Raises:
        UserError: a setting has no effect; names the option and the reason.
    """
    ours, theirs = _values(settings), _values(start)
    for name, one in leaf_fields(settings).items():
        if ours[name] == theirs[name]:
            continue
        for fact, allowed in conditions_of(one).items():
            if facts[fact] not in allowed:
                reason = _reason(fact, allowed, facts[fact])
                raise UserError(f"{option(name)}: has no effect here: {reason}; leave it out")


def _values(settings: Any) -> dict[str, Any]:
    """The settings by name, those of groups too."""
    found: dict[str, Any] = {}
    for name, value in vars(settings).items():
        found |= _values(value) if is_dataclass(value) else {name: value}
    return found


def _reason(fact: str, allowed: tuple[Any, ...], actual: Any) -> str:
    if fact == "source":
        kinds = " or ".join(OF_SOURCE[kind] for kind in allowed)
        return f"it is for {kinds}, and this run is of {OF_SOURCE[actual]}"
    if fact == "format":
        return f"it is for --format {' or '.join(allowed)}, and the format is {actual}"
    if fact == "optimizer" and actual == STAND_IN:
        return f"it is for --optimizer {' or '.join(allowed)}, and --target stand_in has its own"
    if fact == "target" and STAND_IN in allowed:
        return f"it is for --target {STAND_IN}, which would have to be given"
    if fact in ("optimizer", "target"):
        return f"it is for --{fact} {' or '.join(allowed)}, and this run's is {actual}"
    return REASONS[fact]


def check_run(config: RunConfig, start: RunConfig) -> None:
    """Refuse settings that would have no effect, and values out of range.

    Args:
        config: the settings.
        start: the settings that they started from: those of a preset or an earlier run.

    Raises:
        UserError: a setting is refused; names the option.
    """
    check_encoders(config.samples)
    # A sweep's own settings start from their defaults.
    refuse_unused(config, facts_of(config), build(type(config), {}, start))
    check_select(config, start)
    check_target(config)
    check_values(config)
    check_sweep(config, start)


def check_encoders(samples: SampleSettings) -> None:
    """Check that a checkpoint has the encoders that the samples need.

    Raises:
        UserError: it is no CLIP and names are given, or it lacks one of CLIP's encoders.
    """
    if samples.statistics and not samples.forget_text:
        # The checkpoint may no longer exist.
        return
    text, visual = PROJECTIONS
    found, where = clip_projections(samples.checkpoint), samples.checkpoint
    if not found and samples.forget_text:
        found_type, taken = read_model_type(local_checkpoint(where, "none")), ", ".join(CLIPS)
        raise UserError(
            f"{where}: --forget-text needs a CLIP checkpoint, and its model_type is "
            f"{found_type!r}; taken: {taken}"
        )
    if samples.forget_text and text not in found:
        raise UserError(
            f"{where}: is CLIP's image encoder alone, and names need the text encoder; give images "
            "with --forget and --preserve"
        )
    if found and not samples.forget_text and visual not in found:
        raise UserError(
            f"{where}: is CLIP's text encoder alone, and images need the image encoder; give names "
            "with --forget-text and --preserve-text"
        )
    for name in ("images", "other_images"):
        if getattr(samples, name) and found and visual not in found:
            raise UserError(
                f"{option(name)}: {where} is CLIP's text encoder alone, which reads no image; "
                "leave it out"
            )


def check_target(config: RunConfig) -> None:
    """Check that the target has a meaning for the samples.

    Raises:
        UserError: it has none.
    """
    target, tried = config.objective.target_kind, sweep_of(config)
    kinds = set(tried.sweep.target_kinds) if tried else set()
    if STAND_IN in {target, *kinds} and not kinds <= {target}:
        raise UserError("--target-kinds: stand_in is swept alone; give only --target stand_in")
    if target != STAND_IN:
        return
    if config.samples.forget_text:
        raise UserError(
            "--target stand_in: needs many images of a class, and a name has a few prompts; leave "
            "it out"
        )
    # Also if a preset or an earlier run set them.
    plain = {
        "granularity": (config.extraction.granularity, "images"),
        "linears": (tuple(config.objective.linears), ("linear_fc2",)),
        "optimizer": (config.solver.optimizer, None),
        "select": (config.solver.select, "best"),
    }
    for name, (value, needed) in plain.items():
        if value != needed:
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(
                f"{option(name)} {shown}: cannot be used with --target stand_in, and the preset or "
                "the earlier run sets it; start from another"
            )


def check_select(config: RunConfig, start: RunConfig) -> None:
    """Check `select`: held_out needs images, and last needs epochs."""
    select = config.solver.select
    if config.samples.forget_text and select == "held_out":
        raise UserError("--select held_out: names have nothing to hold out; use best or last")
    closed = optimizer_of(config) == "closed_form"
    if select == "last" and closed and start.solver.select != "last":
        raise UserError(
            "--select last: has no effect here: the closed form's last iteration is its best; "
            "leave it out"
        )


def check_values(config: RunConfig) -> None:
    """Refuse values out of range."""
    execution, solver = config.execution, config.solver
    check_solver(solver)
    for name, value in flat(config).items():
        # bool is an int, and of few settings a number beyond these means anything.
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option(name)} {value}: must be finite")
        if isinstance(value, int) and not -MOST <= value <= MOST:
            raise UserError(f"{option(name)} {value}: must be at most {MOST}")
    for name in ("wait_seconds", "heartbeat_seconds"):
        if getattr(execution, name) <= 0:
            raise UserError(f"{option(name)} {getattr(execution, name)}: must be above 0")
    for name in ("save_seconds", "save_steps", "workers"):
        if (value := getattr(execution, name)) is not None and value < (name == "save_steps"):
            raise UserError(f"{option(name)} {value}: too small")
    batch = config.extraction.batch_patches
    if batch.bit_count() != 1 or not SMALLEST_BATCH <= batch <= LARGEST_BATCH:
        raise UserError(
            f"--batch-patches {batch}: must be a power of two from {SMALLEST_BATCH} to "
            f"{LARGEST_BATCH}"
        )
    if config.extraction.keep_means < 1:
        raise UserError(f"--keep-means {config.extraction.keep_means}: must be at least 1")
    if solver.until_forgotten is not None and not 0 < solver.until_forgotten <= 1:
        raise UserError(f"--until-forgotten {solver.until_forgotten}: must be above 0, at most 1")


def check_sweep(config: RunConfig, start: RunConfig) -> None:
    """Refuse options that a sweep would override by the values it tries.

    Raises:
        UserError: an option is refused; names it.
    """
    if (tried := sweep_of(config)) is None:
        return
    if config.samples.statistics and start.solver.select == tried.solver.select == "held_out":
        raise UserError(
            f"--statistics {config.samples.statistics}: was made with --select held_out, and a "
            "sweep has no images to choose by; make it again without"
        )
    refuse_held_out(tried.solver)
    if optimizer_of(config) == "leace":
        raise UserError("--optimizer leace: has nothing to sweep; use closed_form or adam")
    if config.solver.until_forgotten is not None:
        raise UserError(
            "--until-forgotten: a sweep tries its own λ's; leave it out, or pass None if a preset "
            "or an earlier run sets it"
        )
    ours, theirs = flat(config), flat(start)
    for values, base in TRIES.items():
        if getattr(tried.sweep, values) and ours[base] != theirs[base]:
            tries = " ".join(map(str, getattr(tried.sweep, values)))
            raise UserError(
                f"{option(base)}: has no effect here: the sweep tries {tries}; give "
                f"{option(values)} to `sweep`"
            )
    tried.settings(source_of(config.samples), optimizer_of(config))


def refuse_preset(preset: str, settings: RunConfig) -> None:
    """Refuse a preset for a sweep, which tries its own λ's and ranks, most of what a preset sets.

    Raises:
        UserError: a preset other than the default is given for a sweep.
    """
    if preset != "default" and sweep_of(settings) is not None:
        raise UserError(
            "--preset: a sweep tries its own λ's and ranks; leave it out, and give --target, "
            "--reduction and the other settings by name"
        )
