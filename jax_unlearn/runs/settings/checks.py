"""Refuse settings that would have no effect, or whose values have no meaning.

Every setting says beside itself when it has an effect (`used_if`). Here the conditions are compared
with the facts of a command; nothing is listed a second time.
"""

from collections.abc import Mapping
from typing import Any

import porting
from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.features.statistics_file import statistics_kind
from jax_unlearn.objective.merger import FIRST
from jax_unlearn.runs.settings.config import Optimizer, RunConfig, build, flat
from jax_unlearn.runs.settings.sweep_config import TRIES, SweepConfig, sweep_of
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import conditions_of, leaf_fields, option
from jax_unlearn.solvers.grid import refuse_held_out

SMALLEST_BATCH = 256
OF_SOURCE: dict[str, str] = {
    "qwen_images": "images through a Qwen tower",
    "clip_images": "images through CLIP",
    "clip_names": "names (--forget-text)",
}
# Why a setting is not used, where the fact is a yes or no.
REASONS: dict[str, str] = {
    "saved": "no tower is run with --statistics",
    "sweep": "a sweep tries λ's of its own",
    "distributed": "it needs --distributed",
    "until_forgotten": "it needs --until-forgotten",
    "adapts_fc1": "no statistics are left where linear_fc1 is adapted",
    "resumable": "this run takes no longer than a snapshot, and saves none",
    "reads_images": "this run reads no image",
    "vlm": "it needs --vlm",
    "plan": "it needs --plan",
    "draws": "LEACE draws nothing, and nothing is held out with the seed",
    "command": "it is not an option of this command",
}


def source_of(samples: SampleSettings) -> SourceKind:
    """What is to be forgotten: images of a Qwen3 tower or of CLIP, or CLIP's names."""
    if samples.forget_text:
        return "clip_names"
    if samples.statistics:
        # The checkpoint need not be there any more.
        return statistics_kind(samples.statistics)
    return "clip_images" if porting.is_clip(samples.checkpoint) else "qwen_images"


def optimizer_of(config: RunConfig) -> Optimizer:
    """The solver that was chosen, or the closed form wherever there is one."""
    adapts_fc1 = FIRST in config.objective.linears
    return config.solver.optimizer or ("adam" if adapts_fc1 else "closed_form")


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What the conditions of the settings are about."""
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
        "target": config.objective.target,
        "saved": saved,
        "distributed": config.execution.distributed,
        "until_forgotten": config.solver.until_forgotten is not None,
        "adapts_fc1": FIRST in config.objective.linears,
        "resumable": fresh_tower or optimizer == "adam",
        "reads_images": not (saved or names_alone),
        "draws": not (optimizer == "leace" and fixed),
        "sweep": sweep_of(config) is not None,
        "command": "sweep" if isinstance(config, SweepConfig) else "run",
    }


def refuse_unused(settings: Any, facts: Mapping[str, Any], start: Any) -> None:
    """Refuse every setting that was changed and would not be used.

    Args:
        settings: a dataclass, of groups or of settings.
        start: an instance of the same class that the user's settings began from.

    Raises:
        UserError: names the option and why it has no effect.
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
    return flat(settings) if isinstance(settings, RunConfig) else dict(vars(settings))


def _reason(fact: str, allowed: tuple[Any, ...], actual: Any) -> str:
    if fact == "source":
        kinds = " or ".join(OF_SOURCE[kind] for kind in allowed)
        return f"it is for {kinds}, and this run is of {OF_SOURCE[actual]}"
    if fact in ("optimizer", "target"):
        return f"it is for --{fact} {' or '.join(allowed)}, and this run's is {actual}"
    return REASONS[fact]


def check_run(config: RunConfig, start: RunConfig) -> None:
    """Refuse settings that the run would not use, and values without a meaning.

    Args:
        start: the settings that the user's began from: a preset's, or an earlier run's.

    Raises:
        UserError: names the option.
    """
    if config.samples.forget_text and not porting.is_clip(config.samples.checkpoint):
        raise UserError(f"{config.samples.checkpoint}: --forget-text needs a CLIP checkpoint")
    # A sweep's own settings start from their defaults.
    refuse_unused(config, facts_of(config), build(type(config), {}, start))
    check_select(config, start)
    check_values(config)
    check_sweep(config, start)


def check_select(config: RunConfig, start: RunConfig) -> None:
    """Choosing by held-out rows needs images; choosing the last needs epochs."""
    select = config.solver.select
    if config.samples.forget_text and select == "held_out":
        raise UserError("--select held_out: a name has nothing to hold out; take best or last")
    closed = optimizer_of(config) == "closed_form"
    if select == "last" and closed and start.solver.select != "last":
        raise UserError(
            "--select last: has no effect here: the closed form's last iteration is its best; "
            "leave it out"
        )


def check_values(config: RunConfig) -> None:
    """Refuse values that have no meaning."""
    execution, solver = config.execution, config.solver
    for name in ("save_seconds", "save_steps", "workers"):
        if (value := getattr(execution, name)) is not None and value < (name == "save_steps"):
            raise UserError(f"{option(name)} {value}: too small")
    batch = config.extraction.batch_patches
    if batch.bit_count() != 1 or batch < SMALLEST_BATCH:
        raise UserError(
            f"--batch-patches {batch}: must be a power of two, {SMALLEST_BATCH} or more"
        )
    if config.extraction.keep_means < 1:
        raise UserError(f"--keep-means {config.extraction.keep_means}: must be at least 1")
    if solver.until_forgotten is not None and not 0 < solver.until_forgotten <= 1:
        raise UserError(f"--until-forgotten {solver.until_forgotten}: must be above 0, at most 1")


def check_sweep(config: RunConfig, start: RunConfig) -> None:
    """Refuse options that a sweep would replace by the values that it tries.

    Raises:
        UserError: names the option.
    """
    if (tried := sweep_of(config)) is None:
        return
    refuse_held_out(tried.solver)
    if optimizer_of(config) == "leace":
        raise UserError("--optimizer leace: has nothing to sweep; take closed_form or adam")
    if config.solver.until_forgotten is not None:
        raise UserError(
            "--until-forgotten: a sweep tries λ's of its own; leave it out, or give None where a "
            "preset or an earlier run has it"
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
    """A sweep tries λ's and ranks of its own, which are most of what a preset sets.

    Raises:
        UserError: a preset was named.
    """
    if preset != "default" and sweep_of(settings) is not None:
        raise UserError(
            "--preset: a sweep tries λ's and ranks of its own; leave it out, and give --target, "
            "--reduction and the rest by name"
        )
