"""Build the problem to solve from `Extracted` and the settings: Linears and targets."""

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
    STAND_IN,
    TARGETS,
    Outputs,
    Target,
    TargetKind,
    neutral_target,
    targets_of_groups,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

LinearName = Literal["linear_fc1", "linear_fc2"]
# Optimisers that fit to a target; LEACE has neither target, rank nor weights of a loss.
FITTED = ("closed_form", "adam")
# The stand-in target's own solver has a rank and two weights.
WITH_TARGET = (*FITTED, STAND_IN)
Strength = Literal["gentle", "strong"]
# λ_preserve / λ_forget of each strength.
STRENGTHS: dict[Strength, float] = {"gentle": 3.0, "strong": 0.3}
# Streams folded into the seed's key; the adapter's init uses the key itself.
TARGET_STREAM, NOISE_STREAM = 1, 2
# The published scheme adds 0.5 · N(0, 1) to the embedding of "" until it names another class.
NOISE, TRIES = 0.5, 1000


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Which Linears are adapted, and the target of the forget rows."""

    targets: tuple[str, ...] = ("all",)
    """Mergers to adapt: all, or any of merger (the main one), deepstack_merger_list.0, …; with CLIP
    text_projection for names, visual_projection for images."""
    linears: tuple[LinearName, ...] = used_if(("linear_fc2",), source="qwen_images", target=TARGETS)
    """Linears of those Mergers to adapt. With linear_fc1 every step runs the rest of the Merger on
    all tokens, which takes many times the memory and time."""
    target: TargetKind | None = used_if(None, optimizer=WITH_TARGET)
    """Target embeddings of the forget rows: one for all images, or with stand_in the embedding of
    an image of another class, matched by everything except the class, so that labelled images do
    not find the concept again; it needs some hundred images of both. By default near, and for names
    blank; in `run` with images through a Qwen tower stand_in, if there are at least 250 training
    images of each concept and of every class that may take its place, and no --granularity nor any
    other setting of the objective or the solver than --targets and --seed is given."""
    strength: Strength | None = used_if(None, target=STAND_IN, sweep=False)
    """With --target stand_in, in place of --lambda-forget and --lambda-preserve, of which only the
    ratio counts there: gentle (1 to 3) moves images to keep less, strong (1 to 0.3) hides the
    concept better."""
    near_step: float = used_if(1.5, target="near", optimizer=FITTED)
    """With --target near: length of the step from forget images towards the most similar preserve
    images, 1 ending at them. More than 1 also covers images that show the concept less clearly than
    the training images."""

    @property
    def target_kind(self) -> TargetKind:
        """The target; near unless one was given or chosen."""
        return self.target or "near"


def linears_to_adapt(settings: ObjectiveSettings, known: Sequence[str]) -> list[str]:
    """Full names of the Linears selected by --targets and --linears.

    Args:
        settings: the settings.
        known: full names of the source's adaptable Linears.

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
    """Full names of the Linears to adapt, after checking that their rows were extracted.

    Raises:
        UserError: the rows of one of them were not extracted.
    """
    adapted = linears_to_adapt(settings, [*extracted.shapes])
    tokens = {projector_name(name) for name in adapted if name.endswith(f".{FIRST}")}
    with_statistics = extracted.train.forget.statistics
    for name in adapted:
        by_tokens = projector_name(name) in tokens
        if not (name in extracted.shapes if by_tokens else name in with_statistics):
            raise UserError(
                f"{name}: its rows were not extracted; extract with --targets and --linears that "
                "name it"
            )
    return adapted


def problems(
    extracted: Extracted, settings: ObjectiveSettings, seed: int, held_out: bool
) -> tuple[dict[str, ProjectorProblem], Problem | None]:
    """(problem to fit, problem to choose the adapter by), on as few rows as give the same loss.

    Args:
        extracted: the features.
        settings: the Linears and the target.
        seed: seed of drawn targets.
        held_out: whether a fifth of the training images was held out to choose the adapter by; if
            not, the second problem is None. Targets are computed from all training images, so that
            both problems have the same target.

    Raises:
        UserError: the rows of a Linear to adapt were not extracted, or `held_out` differs from the
            setting they were extracted with.
    """
    sides = extracted.train
    if held_out != (sides.forget.choosing is not None):
        raise UserError(
            "--select: held_out must be given both when features are extracted and when they are "
            "fitted, or neither time"
        )
    adapted = adapted_in(settings, extracted)
    parts = dict(
        projector.problem(adapted, sides.forget, target, sides.preserve)
        for projector, target in targets_of(extracted, settings, seed)
    )
    fit = {name: of_projector[0] for name, of_projector in parts.items()}
    return fit, {name: both[1] for name, both in parts.items()} if held_out else None


def targets_of(
    extracted: Extracted,
    settings: ObjectiveSettings,
    seed: int,
    groups: Int[np.ndarray, " images"] | None = None,
) -> Iterator[tuple[Projector, Target]]:
    """Yields each adapted projector with the target of its forget rows.

    Args:
        extracted: the features.
        settings: the Linears and the target.
        seed: seed of drawn targets.
        groups: the group of each forget image, if each group has a target of its own; a row of the
            loss is then an image.
    """
    adapted, sides = set(adapted_in(settings, extracted)), extracted.train
    projectors = projectors_of(extracted.linears)
    means = sides.image_means()
    similar = similar_images(projectors, sides) if settings.target_kind == "near" else None
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
            kind = settings.target_kind
            assert kind != "stand_in"
            step = settings.near_step
            if groups is None:
                yield projector, neutral_target(kind, outputs, subkey, step)
            else:
                yield projector, targets_of_groups(kind, outputs, subkey, step, groups)


def similar_images(projectors: Sequence[Projector], sides: Sides) -> Int[np.ndarray, "samples k"]:
    """Indices of the preserve samples most similar to each forget sample, over all projectors."""
    means = sides.image_means()
    outputs = [one.last.output(means.both(one.last.name)) for one in projectors]
    return most_similar(outputs, sides.is_forget, NEIGHBOURS)


def blank_targets(extracted: Extracted, seed: int) -> dict[str, Float[np.ndarray, " e"]]:
    """The embedding of the target `blank` for each projector, by its name.

    For images it is that of a blank image. For CLIP's names it is the L2-normalised embedding of
    "", with noise added while its nearest name is one to forget (source: the published scheme,
    whose noise is 0.5 · N(0, 1) for each component).

    Raises:
        UserError: no such embedding was found.
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
        target = target + NOISE * np.asarray(jax.random.normal(subkey, target.shape, np.float32))
    raise UserError('every point near "" is named as a class to forget; choose another --target')


def drawn_targets(kind: SourceKind) -> tuple[TargetKind, ...]:
    """Targets that depend on the seed."""
    return DRAWN_FOR_NAMES if kind == "clip_names" else DRAWN
