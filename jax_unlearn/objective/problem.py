"""From `Extracted` and settings to the problem to solve: which Linears, which targets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_unlearn.features.extracted import Extracted, SourceKind, kind_of
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.similarity import Named, classify, most_similar, unit
from jax_unlearn.models.frozen_linear import projector_name
from jax_unlearn.objective.loss import Problem, ProjectorProblem
from jax_unlearn.objective.merger import FIRST
from jax_unlearn.objective.projectors import Projector, adapted_linears, projectors_of
from jax_unlearn.objective.targets import (
    DRAWN,
    DRAWN_FOR_NAMES,
    NEIGHBOURS,
    Outputs,
    Target,
    TargetKind,
    neutral_target,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

LinearName = Literal["linear_fc1", "linear_fc2"]
# LEACE erases what it is given, without a target.
FITTED = ("closed_form", "adam")
# Each draws from a stream of its own: the adapter's init uses the seed's key itself.
TARGET_STREAM, NOISE_STREAM = 1, 2
# The published scheme moves the embedding of "" by 0.5 · N(0, 1) until it names something else.
NOISE, TRIES = 0.5, 1000


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Which Linears are adapted, and where the rows to forget are sent."""

    targets: tuple[str, ...] = ("all",)
    """Which Mergers to adapt: all, or any of merger (the main one), deepstack_merger_list.0, …;
    with CLIP text_projection for names, visual_projection for images."""
    linears: tuple[LinearName, ...] = used_if(("linear_fc2",), source="qwen_images")
    """Which Linears of those Mergers. With linear_fc1 every step runs the rest of the Merger on all
    tokens, which costs many times the memory and the time."""
    target: TargetKind = used_if("near", optimizer=FITTED)
    """Where forget rows are sent."""
    near_step: float = used_if(1.5, target="near", optimizer=FITTED)
    """With --target near: how far to go, 1 ending at the most similar preserve images. More than 1
    leaves room for images whose concept is weaker than in those trained on."""


def linears_to_adapt(settings: ObjectiveSettings, known: Sequence[str]) -> list[str]:
    """Full names of the Linears that the settings name.

    Args:
        known: full names of the Linears of a source, of which some may be adapted.

    Raises:
        UserError: --targets or --linears names one that the source does not have.
    """
    projectors = [*dict.fromkeys(map(projector_name, known))]
    if kind_of(known[0]) == "qwen_images":
        return adapted_linears(settings.targets, settings.linears, projectors)
    (name,) = projectors
    if settings.targets and set(settings.targets) <= {"all", name}:
        return [name]
    raise UserError(f"--targets {' '.join(settings.targets)}: must be all or {name} here")


def adapted_in(settings: ObjectiveSettings, extracted: Extracted) -> list[str]:
    """The Linears that the settings name, all of which can be fitted to what was extracted.

    Raises:
        UserError: features of one of them were not extracted.
    """
    adapted = linears_to_adapt(settings, [*extracted.shapes])
    tokens = {projector_name(name) for name in adapted if name.endswith(f".{FIRST}")}
    summed = extracted.train.forget.statistics
    for name in adapted:
        by_tokens = projector_name(name) in tokens
        if not (name in extracted.shapes if by_tokens else name in summed):
            raise UserError(
                f"{name}: its rows were not extracted; extract with --targets and --linears that "
                "name it"
            )
    return adapted


def problems(
    extracted: Extracted, settings: ObjectiveSettings, seed: int, held_out: bool
) -> tuple[dict[str, ProjectorProblem], Problem | None]:
    """(problem to fit, problem to choose the adapter by), on as few rows as carry the loss.

    Args:
        held_out: whether a fifth of the training images is there to choose the adapter by. Targets
            are made for all images, so that both parts go to the same place.

    Raises:
        UserError: features of a Linear to adapt, or those to choose by, were not extracted.
    """
    sides = extracted.train
    if held_out != (sides.forget.choosing is not None):
        raise UserError(
            "--select: the features were extracted with images to choose by, or without; select "
            "held_out in both places, or in neither"
        )
    adapted = adapted_in(settings, extracted)
    parts = dict(
        projector.problem(adapted, sides.forget, target, sides.preserve)
        for projector, target in targets_of(extracted, settings, seed)
    )
    fit = {name: of_projector[0] for name, of_projector in parts.items()}
    return fit, {name: both[1] for name, both in parts.items()} if held_out else None


def targets_of(
    extracted: Extracted, settings: ObjectiveSettings, seed: int
) -> Iterator[tuple[Projector, Target]]:
    """Every projector that is adapted, and where it is to send the rows to forget."""
    adapted, sides = set(adapted_in(settings, extracted)), extracted.train
    projectors = projectors_of(extracted.linears)
    means = sides.image_means()
    similar = similar_images(projectors, sides) if settings.target == "near" else None
    blank = blank_targets(extracted, seed) if settings.target == "blank" else {}
    key = jax.random.fold_in(jax.random.key(seed), TARGET_STREAM)
    for projector, subkey in zip(projectors, jax.random.split(key, len(projectors)), strict=True):
        if any(linear.name in adapted for linear in projector.linears):
            last = projector.last
            of_images = [last.output(s.taps[last.name].x) for s in (means.forget, means.preserve)]
            of_rows = np.stack([s.mean(last.name) for s in (sides.forget, sides.preserve)])
            forget_mean, preserve_mean = last.output(of_rows)
            outputs = Outputs(
                of_images[0],
                of_images[1],
                forget_mean,
                preserve_mean,
                blank.get(projector.name),
                similar,
            )
            yield projector, neutral_target(settings.target, outputs, subkey, settings.near_step)


def similar_images(projectors: Sequence[Projector], sides: Sides) -> Int[np.ndarray, "samples k"]:
    """For each sample to forget, the preserved ones most like it over all projectors."""
    means = sides.image_means()
    outputs = [one.last.output(means.both(one.last.name)) for one in projectors]
    return most_similar(outputs, sides.is_forget, NEIGHBOURS)


def blank_targets(extracted: Extracted, seed: int) -> dict[str, Float[np.ndarray, " e"]]:
    """Where the target `blank` sends the rows of each projector, by its name.

    Of CLIP's names the L2-normalised embedding of "", moved at random while it names what is to be
    forgotten (source: the published scheme, whose noise is 0.5 · N(0, 1) for each component).

    Raises:
        UserError: no such point was found.
    """
    if extracted.kind != "clip_names":
        return dict(extracted.empty)
    (projection,) = projectors_of(extracted.linears)
    sides, last = extracted.train, projection.last
    target = unit(extracted.empty[projection.name][None])
    names = Named(last.output(sides.both(last.name)), sides.labels)
    key = jax.random.fold_in(jax.random.key(seed), NOISE_STREAM)
    for subkey in jax.random.split(key, TRIES):
        if classify(target, names)[0] not in sides.forget.labels:
            return {projection.name: target[0]}
        target = target + NOISE * np.asarray(jax.random.normal(subkey, target.shape))
    raise UserError('every point near "" names what is to be forgotten; choose another --target')


def drawn_targets(kind: SourceKind) -> tuple[TargetKind, ...]:
    """Targets that depend on the seed."""
    return DRAWN_FOR_NAMES if kind == "clip_names" else DRAWN
