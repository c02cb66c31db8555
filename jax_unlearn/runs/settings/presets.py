"""Published and measured settings by name."""

from typing import Any, Literal

from jax_unlearn.runtime.errors import UserError

Preset = Literal["default", "faithful", "clip-rn50", "clip-vit-b16", "clip-multi"]


# The published scheme, every constant of it, whatever our own defaults become.
FAITHFUL: dict[str, Any] = {
    "preset": "faithful",
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


# CLIP's text side as published (TMLR 2025): a bare name goes to the normalised embedding of "".
CLIP_RN50: dict[str, Any] = FAITHFUL | {
    "preset": "clip-rn50",
    "targets": ("all",),
    "target": "blank",
    "train_templates": ("{}",),
    "alpha": 1.0,
    "until_forgotten": 0.7,
}


CLIP_VIT_B16: dict[str, Any] = CLIP_RN50 | {
    "preset": "clip-vit-b16",
    "lambda_forget": 1.1,
    "lambda_preserve": 0.25,
}


CLIP_MULTI: dict[str, Any] = CLIP_VIT_B16 | {
    "preset": "clip-multi",
    "lambda_forget": 1.3,
    "lambda_preserve": 0.3,
}


# The published code's best is its last epoch, and a rise of the forget norm ends its search too.
CLIP_FAITHFUL: dict[str, Any] = CLIP_RN50 | {"preset": "faithful", "select": "last"}


# Measured on the shipped CLIP (benchmarks/forgetting/clip_names.py): `near`, the default for
# images, takes one step for all names and so forgets one name only.
CLIP_DEFAULT: dict[str, Any] = {"target": "blank", "lambda_preserve": 1.0}


def preset_settings(preset: Preset, text: bool) -> dict[str, Any]:
    """The settings that a preset stands for.

    Args:
        text: whether names are forgotten, through CLIP's text side.

    Raises:
        UserError: a preset of CLIP's text side without names.
    """
    if preset == "default":
        return CLIP_DEFAULT if text else {}
    if preset == "faithful":
        return CLIP_FAITHFUL if text else FAITHFUL
    if not text:
        raise UserError(f"--preset {preset}: is for names; give them by --forget-text")
    return {"clip-rn50": CLIP_RN50, "clip-vit-b16": CLIP_VIT_B16, "clip-multi": CLIP_MULTI}[preset]
