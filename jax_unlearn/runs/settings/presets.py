"""Presets: named sets of values, from publications or measurements.

A preset is resolved once; a run records the values, not the name.
"""

from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.objective.problem import ObjectiveSettings
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.settings.checks import source_of
from jax_unlearn.runs.settings.config import RunConfig, SolverSettings, read_config
from jax_unlearn.runtime.errors import UserError

Preset = Literal["default", "faithful", "clip-rn50", "clip-vit-b16", "clip-multi"]

# The published scheme, with all its constants, so that it does not depend on our defaults.
FAITHFUL: dict[str, Any] = {
    "optimizer": "adam",
    "targets": ("merger",),
    "linears": ("linear_fc2",),
    "target": "random",
    "granularity": "tokens",
    "rank": 5,
    "alpha": None,  # the rank, so that the scale is 1
    "lambda_forget": 1.3,
    "lambda_preserve": 0.4,
    "lambda_weight": 1.0,
    "reduction": "sum",
    "learning_rate": 0.01,
    "epochs": 2000,
    "select": "best",
}
# CLIP has one projection to adapt and one row per sample.
CLIP_IMAGES: dict[str, Any] = {
    name: value for name, value in FAITHFUL.items() if name not in ("linears", "granularity")
} | {"targets": ("all",)}
# CLIP's text side as published (TMLR 2025): the target of a name is the normalised embedding of "".
CLIP_RN50: dict[str, Any] = CLIP_IMAGES | {
    "target": "blank",
    "train_templates": ("{}",),
    "alpha": 1.0,
    "until_forgotten": 0.7,
}
CLIP_VIT_B16: dict[str, Any] = CLIP_RN50 | {"lambda_forget": 1.1, "lambda_preserve": 0.25}
CLIP_MULTI: dict[str, Any] = CLIP_VIT_B16 | {"lambda_forget": 1.3, "lambda_preserve": 0.3}
# The published code keeps the last epoch, and a rise of the forget norm also ends its search.
CLIP_FAITHFUL: dict[str, Any] = CLIP_RN50 | {"select": "last", "count_rise": True}

# Measured on the shipped CLIP (benchmarks/forgetting/clip_names.py): `near`, the default for
# images, shifts all names by one vector, which works for a single name only.
CLIP_DEFAULT: dict[str, Any] = {"target": "blank", "lambda_preserve": 1.0}

# Measured on drawings (benchmarks/forgetting/stand_in.py).
OF_TARGET: dict[str, dict[str, Any]] = {
    "stand_in": {"target": "stand_in", "rank": 32, "lambda_forget": 1.0, "lambda_preserve": 1.0}
}

# Settings with which a run that is given no target keeps near: what they mean depends on it.
FOR_NEAR: tuple[str, ...] = (
    *(
        one.name
        for group in (ObjectiveSettings, SolverSettings)
        for one in fields(group)
        if one.name not in ("target", "targets", "seed")
    ),
    "granularity",
)

PRESETS: dict[SourceKind, dict[str, dict[str, Any]]] = {
    "qwen_images": {"default": {}, "faithful": FAITHFUL},
    "clip_images": {"default": {}, "faithful": CLIP_IMAGES},
    "clip_names": {
        "default": CLIP_DEFAULT,
        "faithful": CLIP_FAITHFUL,
        "clip-rn50": CLIP_RN50,
        "clip-vit-b16": CLIP_VIT_B16,
        "clip-multi": CLIP_MULTI,
    },
}


def preset_settings(preset: Preset, source: SourceKind) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        preset: name of the preset.
        source: kind of samples to forget.

    Raises:
        UserError: the preset is for CLIP's text side, and the samples are not names.
    """
    known = PRESETS[source]
    if preset not in known:
        raise UserError(f"--preset {preset}: is for names; give them with --forget-text")
    return known[preset]


def start_settings(
    preset: Preset = "default",
    *,
    checkpoint: Path | None = None,
    out: Path = Path(),
    forget_text: Sequence[str] = (),
    statistics: Path | None = None,
    target: str | None = None,
    given: Collection[str] = (),
) -> RunConfig:
    """The initial settings of a run: those of a preset, or of an earlier run.

    Args:
        preset: name of the preset.
        checkpoint: the checkpoint; required without `statistics`.
        out: directory of the run.
        forget_text: names to forget, for CLIP.
        statistics: directory of an earlier run, whose settings replace the defaults.
        target: the target, if it is given; some have defaults of their own.
        given: names of the settings that are given, also those that are given their default.

    Raises:
        UserError: the preset is not for such a run, `checkpoint` is not a checkpoint, or
            `statistics` is not a run.
    """
    if statistics is not None:
        if preset != "default":
            raise UserError("--preset: --statistics starts from the earlier run; leave it out")
        earlier = read_config(statistics).replace(out=out, statistics=statistics)
        return with_target(earlier, target)
    assert checkpoint is not None
    plain = RunConfig.of(checkpoint=checkpoint, out=out, forget_text=tuple(forget_text))
    settings = preset_settings(preset, source_of(plain.samples))
    start = plain.replace(**settings | OF_TARGET.get(str(target), {}))
    if target is None and start.objective.target is None and {*given} & {*FOR_NEAR}:
        return start.replace(target="near")
    return start


def with_target(earlier: RunConfig, target: str | None) -> RunConfig:
    """The settings of an earlier run as the start of one with another target, or the same.

    Settings that a target has defaults of its own for start from those of the new target.
    """
    if target in (None, earlier.objective.target):
        return earlier
    new = OF_TARGET.get(str(target), {})
    if target == STAND_IN:
        # It has a solver of its own.
        new = new | {"optimizer": None}
    if earlier.objective.target in OF_TARGET:
        plain = RunConfig.of(checkpoint=Path(), out=Path())
        names = ("rank", "lambda_forget", "lambda_preserve")
        new = {name: getattr(plain.solver, name) for name in names} | {"strength": None} | new
    return earlier.replace(**new)


def start_of(config: RunConfig) -> RunConfig:
    """The initial settings of a config made in Python: the defaults, or those of an earlier run."""
    samples = config.samples
    return start_settings(
        checkpoint=samples.checkpoint,
        out=config.execution.out,
        forget_text=samples.forget_text,
        statistics=samples.statistics,
        target=config.objective.target,
    )
