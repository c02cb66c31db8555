"""Choose the target of a run that is given none, by the number of its images."""

from collections import Counter

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.data.images import ImageFile
from jax_unlearn.objective.counterparts import with_same_words
from jax_unlearn.objective.problem import WITH_TARGET
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.settings.checks import optimizer_of
from jax_unlearn.runs.settings.config import RunConfig, flat
from jax_unlearn.runs.settings.presets import FOR_NEAR, OF_TARGET
from jax_unlearn.runtime.used_if import option

# With so many images of each side, labelled images find far less after stand_in than after near,
# and what the model answers is kept as well (docs/results/stand-in.md).
ENOUGH = 250


def with_default_target(
    config: RunConfig, dataset: Dataset[ImageFile]
) -> tuple[RunConfig, str | None]:
    """The settings with a target, and why it was chosen; None if it was given, or has no effect.

    Args:
        config: the settings of a run of images through a Qwen tower.
        dataset: its images.
    """
    if config.objective.target is not None:
        return config, None
    near = config.replace(target=config.objective.target_kind)
    if optimizer_of(near) not in WITH_TARGET:
        return near, None
    concept, counterpart = numbers(dataset, config.samples.concept)
    if counterpart is None:
        return near, "target near: the images to keep have no classes, of which one is the stand-in"
    what = f"{concept} images of the concept and {counterpart} of what may take its place"
    if min(concept, counterpart) < ENOUGH:
        return near, (
            f"target near: there are {what}, and stand_in, which also hides it from labelled "
            f"images, is chosen from {ENOUGH} of each; --target chooses otherwise"
        )
    if changed := settings_for_near(config):
        names = ", ".join(map(option, changed))
        return near, (
            f"target near, as this is not the default: {names}; there are {what}, enough for "
            "--target stand_in, which also hides it from labelled images"
        )
    new = OF_TARGET[STAND_IN]
    values = ", ".join(f"{option(name)} {new[name]}" for name in new)
    return config.replace(**new), (
        f"{values}: there are {what}, at least {ENOUGH} of each; --target near moves the other "
        "images less, and labelled images find the concept again"
    )


def settings_for_near(config: RunConfig) -> list[str]:
    """Settings of the objective, the solver and the features that are not at their defaults."""
    ours = flat(config)
    theirs = flat(RunConfig.of(checkpoint=config.samples.checkpoint, out=config.execution.out))
    return [name for name in FOR_NEAR if ours[name] != theirs[name]]


def numbers(dataset: Dataset[ImageFile], concept: str | None) -> tuple[int, int | None]:
    """(training images of a concept, of its counterpart), of the concept that has fewest.

    The counterpart is known only when the features are, so this is the smallest that it may be:
    `jax_unlearn.objective.counterparts`. None if the images to keep have no classes.
    """
    forget = Counter(file.label for file in dataset.forget)
    kept = Counter(file.label for file in dataset.preserve)
    groups = {concept: [*forget]} if concept else {label: [label] for label in forget}
    fewest = min(sum(forget[label] for label in group) for group in groups.values())
    if len(kept) == 1:
        return fewest, None
    candidates = [
        labels
        for words, group in groups.items()
        for labels in (with_same_words(words, group, kept).values() or [[one] for one in kept])
    ]
    return fewest, min(sum(kept[label] for label in labels) for labels in candidates)
