"""Published and measured settings by name: a preset is a set of values, resolved once.

Nothing reads a preset's name afterwards: a run records the values.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jax_unlearn.features.extracted import SourceKind
from jax_unlearn.runs.settings.checks import source_of
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runtime.errors import UserError

Preset = Literal["default", "faithful", "clip-rn50", "clip-vit-b16", "clip-multi"]

# The published scheme, every constant of it, whatever our own defaults become.
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
# CLIP has one projection to adapt, and a sample is one row.
CLIP_IMAGES: dict[str, Any] = {
    name: value for name, value in FAITHFUL.items() if name not in ("linears", "granularity")
} | {"targets": ("all",)}
# CLIP's text side as published (TMLR 2025): a bare name goes to the normalised embedding of "".
CLIP_RN50: dict[str, Any] = CLIP_IMAGES | {
    "target": "blank",
    "train_templates": ("{}",),
    "alpha": 1.0,
    "until_forgotten": 0.7,
}
CLIP_VIT_B16: dict[str, Any] = CLIP_RN50 | {"lambda_forget": 1.1, "lambda_preserve": 0.25}
CLIP_MULTI: dict[str, Any] = CLIP_VIT_B16 | {"lambda_forget": 1.3, "lambda_preserve": 0.3}
# The published code's best is its last epoch, and a rise of the forget norm ends its search too.
CLIP_FAITHFUL: dict[str, Any] = CLIP_RN50 | {"select": "last", "count_rise": True}

# Measured on the shipped CLIP (benchmarks/forgetting/clip_names.py): `near`, the default for
# images, takes one step for all names and so forgets one name only.
CLIP_DEFAULT: dict[str, Any] = {"target": "blank", "lambda_preserve": 1.0}

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
    """The settings that a preset stands for.

    Args:
        source: what is forgotten: images of a Qwen3 tower or of CLIP, or CLIP's names.

    Raises:
        UserError: a preset of CLIP's text side without names.
    """
    known = PRESETS[source]
    if preset not in known:
        raise UserError(f"--preset {preset}: is for names; give them by --forget-text")
    return known[preset]


def start_settings(
    preset: Preset = "default",
    *,
    checkpoint: Path | None = None,
    out: Path = Path(),
    forget_text: Sequence[str] = (),
    statistics: Path | None = None,
) -> RunConfig:
    """The settings that a run starts from: a preset's, or those of an earlier run.

    Args:
        statistics: directory of an earlier run, whose settings take the place of the defaults.

    Raises:
        UserError: the preset is not for such a run, `checkpoint` is no checkpoint, or `statistics`
            is no run.
    """
    if statistics is not None:
        if preset != "default":
            raise UserError("--preset: --statistics starts from the earlier run; leave it out")
        return read_config(statistics).replace(out=out, statistics=statistics)
    assert checkpoint is not None
    given = {"checkpoint": checkpoint, "out": out, "forget_text": tuple(forget_text)}
    plain = RunConfig.of(**given)
    return plain.replace(**preset_settings(preset, source_of(plain.samples)))


def start_of(config: RunConfig) -> RunConfig:
    """Where settings from Python started: the defaults, or an earlier run's."""
    samples = config.samples
    return start_settings(
        checkpoint=samples.checkpoint,
        out=config.execution.out,
        forget_text=samples.forget_text,
        statistics=samples.statistics,
    )
