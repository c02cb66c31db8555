"""The options of `jax-unlearn ledger …`, and the settings that a ledger cannot have."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import porting
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.features.requests import Combine
from jax_unlearn.objective.problem import ObjectiveSettings
from jax_unlearn.runs.settings.checks import check_run, source_of
from jax_unlearn.runs.settings.config import RunConfig, SolverSettings, build, flat
from jax_unlearn.runs.settings.presets import CLIP_DEFAULT, OF_TARGET, start_settings
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import pinned
from jax_unlearn.runtime.used_if import leaf_fields, option

# In the settings of a ledger of names, which are those of a run for names; requests have the names.
SOME_NAME = ("some name",)
# Settings that must keep their default, and why.
REASONS = {
    "granularity": "a ledger keeps the mean of each image and no tokens",
    "linears": "a ledger keeps no rows before a GELU",
    "optimizer": "LEACE erases one concept and has no rank to add up",
    "keep_means": "a ledger keeps the mean of every image",
    "auto": "a ledger's settings are given once, by `ledger init`",
}


@dataclass(frozen=True)
class TowerPass:
    """How the tower runs over images."""

    mesh: str | None = None
    """data=N: number of devices that run the tower, as for `run`."""
    workers: int | None = None
    """Processes that decode and pack images, as for `run`."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of skipping it."""


@dataclass(frozen=True)
class Init:
    """Begin a ledger: run the tower over the images to preserve, once, or the text encoder over
    names; the settings are those of all its runs."""

    directory: Positional[Path]
    """Directory of the ledger, created."""
    checkpoint: Path
    """Checkpoint of the Qwen3-VL, Qwen3-Omni or Qwen3.5 family, or of CLIP for names: its
    directory, or its id on the Hugging Face hub."""
    preserve: Path | None = None
    """Folder of images to preserve, also those that a later request is about; sub-folders are
    classes."""
    preserve_text: tuple[str, ...] = ()
    """CLIP: names to preserve, also those that a later request is about, or a .txt file with one
    name per line."""
    train_templates: tuple[str, ...] = ("{}",)
    """CLIP: prompts used in training, with {} in place of the name."""
    template: str = "a photo of a {}."
    """CLIP: the prompt used in evaluation, with {} in place of the name."""
    preserve_held_out: Path | None = None
    """Held-out images, for evaluation; by default a seeded fifth of each class of --preserve."""
    names: Path | None = None
    """Names of sub-folders: a text file with a folder, a tab and its name in each line."""
    image_means: bool = True
    """Keep the mean row of every image; without them, rows that have the same sums of each class
    and are of no single image. What is then measured is not of images, and an image of --preserve
    cannot be asked for by a folder."""
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    tower: TowerPass = field(default_factory=TowerPass)


@dataclass(frozen=True)
class Add:
    """Add a request; prints its id."""

    directory: Positional[Path]
    """Directory of a ledger."""
    concept: str
    """What to forget, in words. Without --images: the classes to preserve whose names contain all
    of these words."""
    images: Path | None = None
    """Folder of images to forget; sub-folders are classes. The tower runs over those alone that are
    not among the images to preserve; a fifth of each class is held out."""
    text: tuple[str, ...] = ()
    """CLIP: names to forget that are not among those to preserve."""
    tower: TowerPass = field(default_factory=TowerPass)


@dataclass(frozen=True)
class Undo:
    """Withdraw a request: what is solved afterwards is as if it had never been added."""

    directory: Positional[Path]
    """Directory of a ledger."""
    id: Positional[str]
    """Id of an active request, as `ledger list` prints it."""


@dataclass(frozen=True)
class Listing:
    """Check a ledger and list its entries and active requests."""

    directory: Positional[Path]
    """Directory of a ledger."""
    digest: str | None = None
    """Digest that an earlier `ledger list` printed: show that this ledger continues that one."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Solve:
    """Fit all active requests, without an image or a tower; --out is an ordinary run."""

    directory: Positional[Path]
    """Directory of a ledger."""
    out: Path
    """Directory of the run, created."""
    combine: Combine = "sum"
    """sum: fit each request alone against the original, with the images of all active requests left
    out of those to preserve, and add the changes up; joint: one fit of all requests, each towards
    the target that it has alone; with --target stand_in only with --equal. Both have --rank for
    each request."""
    equal: bool = False
    """Move every request exactly to its target. By default those of whose training images a linear
    probe still names one are moved further, by up to four times, until it names none."""
    steps: bool = False
    """Also measure what is named of each request after each entry of the ledger, which takes a
    solve for each; the table is in metrics.json and report.html."""
    rank_after: int | None = None
    """With --combine sum: cut the sum to this rank, by an SVD; by default it is not cut."""
    overwrite: bool = False
    """Replace --out if it exists."""


def with_target_defaults(words: Sequence[str]) -> list[str]:
    """The command line with the settings that the target of `ledger init`, or a ledger of names,
    has of its own, where they are not given."""
    if [*words[:2]] != ["ledger", "init"]:
        return [*words]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target", nargs="?")
    own = OF_TARGET.get(str(parser.parse_known_args([*words])[0].target), {})
    given = {word.split("=")[0].replace("_", "-") for word in words}
    if option("preserve_text") in given:
        own = CLIP_DEFAULT
    more = {option(name): str(value) for name, value in own.items() if option(name) not in given}
    return [*words[:2], *(word for pair in more.items() for word in pair), *words[2:]]


def ledger_config(command: Init) -> RunConfig:
    """The settings of a ledger's runs.

    Raises:
        UserError: a setting is out of range, has no effect, or needs what a ledger does not keep.
    """
    given: dict[str, Any] = {
        "checkpoint": pinned(command.checkpoint),
        "preserve": command.preserve,
        "preserve_held_out": command.preserve_held_out,
        "preserve_text": command.preserve_text,
        "forget_text": SOME_NAME if command.preserve_text else (),
        "train_templates": command.train_templates,
        "template": command.template,
        "names": command.names,
        "out": command.directory,
        **vars(command.tower),
    }
    for group in (command.objective, command.solver, command.extraction):
        given |= {name: getattr(group, name) for name in leaf_fields(group)}
    config = build(RunConfig, given)
    samples = config.samples
    if (command.preserve is None) == (not command.preserve_text):
        raise UserError(
            "--preserve: give a folder of images, or for a CLIP checkpoint names with "
            "--preserve-text, and not both"
        )
    if source_of(samples) == "clip_images":
        raise UserError(
            f"{command.checkpoint}: is a CLIP, of which a ledger takes names alone; give "
            "--preserve-text, or use `run`"
        )
    if samples.forget_text and not porting.is_clip(samples.checkpoint):
        raise UserError(f"{command.checkpoint}: is no CLIP, and --preserve-text is for CLIP alone")
    if samples.forget_text and not command.image_means:
        raise UserError("--no-image-means: has no effect here: names have no images; leave it out")
    start = start_settings(
        checkpoint=samples.checkpoint,
        out=command.directory,
        forget_text=samples.forget_text,
        target=config.objective.target,
    )
    ours, theirs = flat(config), flat(start)
    for name, why in REASONS.items():
        value = ours[name]
        if value != theirs[name] and not (name == "optimizer" and value != "leace"):
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(f"{option(name)} {shown}: cannot be used here: {why}; leave it out")
    check_run(config, start)
    # Not by the number of images, which changes with every request.
    return config.replace(target=config.objective.target_kind)
