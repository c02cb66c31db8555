"""The images that attackers fit on and are tested with, in three groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jax_unlearn.data.images import ImageFile


@dataclass(frozen=True)
class Groups:
    """Images of the concept, of the class it is moved onto, and of other classes to keep."""

    forget: tuple[ImageFile, ...]
    counterpart: tuple[ImageFile, ...]
    others: tuple[ImageFile, ...]

    @property
    def counts(self) -> dict[str, int]:
        return {
            "forget": len(self.forget),
            "counterpart": len(self.counterpart),
            "others": len(self.others),
        }


def halved(
    files: Sequence[ImageFile], random: np.random.Generator
) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]:
    """Each class in random order, cut in half; the test half has the odd image."""
    first: list[ImageFile] = []
    second: list[ImageFile] = []
    for label in sorted({file.label for file in files}):
        own = [file for file in files if file.label == label]
        order = random.permutation(len(own))
        first += [own[i] for i in order[: len(own) // 2]]
        second += [own[i] for i in order[len(own) // 2 :]]
    return tuple(first), tuple(second)


def spread(files: Sequence[ImageFile], most: int) -> tuple[ImageFile, ...]:
    """At most so many files, the classes in turn."""
    by_class: dict[str, list[ImageFile]] = {}
    for file in files:
        by_class.setdefault(file.label, []).append(file)
    turns = max(map(len, by_class.values()), default=0)
    order = [own[i] for i in range(turns) for own in by_class.values() if i < len(own)]
    return tuple(order[:most])
