"""Hold out a fifth of each class, and check that no image is in two groups."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from jax_unlearn.data.images import ImageFile
from jax_unlearn.runtime.errors import UserError

HELD_OUT = 1 / 5


def split_held_out(
    files: Sequence[ImageFile], seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split into (training, held-out) files; a seeded fifth of each class is held out.

    The fifth is rounded up; a class of one image has none held out. Copies of a held-out image (the
    same bytes) are held out with it.

    Raises:
        UserError: every class has one image only, so that none can be held out.
    """
    # A dict serves as an ordered set, so that the draw does not depend on hashing.
    by_label: dict[str, dict[bytes, None]] = defaultdict(dict)
    for file in files:
        by_label[file.label][file.digest] = None
    rng = np.random.default_rng(seed)
    held: set[bytes] = set()
    for label in sorted(by_label):
        group = list(by_label[label])
        count = math.ceil(len(group) * HELD_OUT) if len(group) > 1 else 0
        held |= {group[i] for i in rng.permutation(len(group))[:count]}
    if not held:
        raise UserError(
            f"{files[0].path.parent}: one image per class leaves none to hold out; "
            "give two or more, or a folder of held-out images"
        )
    train = [file for file in files if file.digest not in held]
    return train, [file for file in files if file.digest in held]


def check_disjoint(groups: Mapping[str, Sequence[ImageFile]]) -> None:
    """Check that no image (by its bytes) is in two groups, e.g. forget and preserve.

    Raises:
        UserError: an image is; the message names both files and both groups.
    """
    seen: dict[bytes, tuple[str, str]] = {}
    for group, files in groups.items():
        for file in files:
            other, name = seen.setdefault(file.digest, (group, file.name))
            if other != group:
                raise UserError(
                    f"{file.name}: the same image as {name}, but one is {group} and the other "
                    f"{other}; remove one"
                )
