"""Refuse settings that would have no effect."""

from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.settings.sweep_config import SweepConfig, sweep_of
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.grid import refuse_held_out

SMALLEST_BATCH = 256


# What belongs to names, and what to images.
OF_NAMES = ("preserve_text", "images", "other_images")


OF_IMAGES = ("forget", "preserve", "forget_held_out", "preserve_held_out", "concept", "questions")


# How the tower runs, and nothing else does.
OF_TOWER = ("mesh", "workers", "batch_patches")


def check_no_tower(config: RunConfig) -> None:
    """Refuse options that would be left aside where no Qwen tower runs.

    Raises:
        UserError: names the option.
    """
    # What the earlier run was told is not asked for now.
    usual = read_config(config.statistics) if config.statistics else RunConfig
    for name in OF_TOWER:
        if getattr(config, name) != getattr(usual, name):
            option = name.replace("_", "-")
            raise UserError(f"--{option}: is for images through a Qwen tower; leave it out")


def check_inputs(config: RunConfig) -> None:
    """Refuse options that would be left aside.

    Raises:
        UserError: names the option.
    """
    others = OF_IMAGES if config.forget_text else OF_NAMES
    if given := [name for name in others if getattr(config, name)]:
        option = given[0].replace("_", "-")
        mend = "it is for images" if config.forget_text else "it needs --forget-text"
        raise UserError(f"--{option}: {mend}; leave it out")
    if config.forget_text and config.select == "held_out":
        raise UserError("--select held_out: a name has nothing to hold out; take best or last")
    by_hand = (config.coordinator, config.process_id, config.processes)
    if not config.distributed and by_hand != (None, None, None):
        raise UserError("--coordinator, --process-id and --processes: need --distributed")
    for name in ("save_seconds", "save_steps", "workers"):
        if (value := getattr(config, name)) is not None and value < (name == "save_steps"):
            raise UserError(f"--{name.replace('_', '-')} {value}: too small")
    if config.batch_patches.bit_count() != 1 or config.batch_patches < SMALLEST_BATCH:
        raise UserError(
            f"--batch-patches {config.batch_patches}: must be a power of two, {SMALLEST_BATCH} or "
            "more"
        )
    if config.keep_means < 1:
        raise UserError(f"--keep-means {config.keep_means}: must be at least 1")
    if config.optimizer == "leace" and config.until_forgotten is not None:
        raise UserError("--until-forgotten: LEACE has nothing to choose; leave it out")
    if config.until_forgotten is not None and not 0 < config.until_forgotten <= 1:
        raise UserError(f"--until-forgotten {config.until_forgotten}: must be above 0, at most 1")


def check_sweep(config: RunConfig) -> None:
    """Refuse options that a sweep would leave aside.

    Raises:
        UserError: names the option.
    """
    if (tried := sweep_of(config)) is None:
        return
    refuse_held_out(tried)
    if tried.optimizer == "leace":
        raise UserError("--optimizer leace: has nothing to sweep; take closed_form or adam")
    if tried.until_forgotten is not None:
        raise UserError(
            "--until-forgotten: a sweep tries λ's of its own; leave it out, or give None where a "
            "preset or an earlier run has it"
        )
    if config.auto and isinstance(config, SweepConfig):
        raise UserError("--auto: is of run, and a sweep is what it begins with; leave it out")
    tried.grid().settings(tried.sample)
