"""The four groups of images of a run: to forget and to keep, to train on and to test with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.config import RunConfig
from jax_unlearn.data.folder import ImageFile, check_disjoint, find_images, split_held_out
from jax_unlearn.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """Files of a run; the held-out ones are for evaluation only."""

    forget: list[ImageFile]
    preserve: list[ImageFile]
    forget_held_out: list[ImageFile]
    preserve_held_out: list[ImageFile]

    def fingerprint(self) -> str:
        """Changes when an image, its class or its group does."""
        groups = (self.forget, self.preserve, self.forget_held_out, self.preserve_held_out)
        total = hashlib.sha256()
        for number, files in enumerate(groups):
            for file in files:
                total.update(f"{number} {file.label} {file.digest.hex()}\n".encode())
        return total.hexdigest()


def collect(config: RunConfig) -> Dataset:
    """Find and split the images.

    Raises:
        UserError: an empty or missing folder, a concept that no class has, one image only, or the
            same image in two groups.
    """
    forget, forget_test = _side(config, config.forget, config.forget_held_out, True)
    preserve, preserve_test = _side(config, config.preserve, config.preserve_held_out, False)
    groups = {
        "to forget": forget,
        "to preserve": preserve,
        "held out to test forgetting": forget_test,
        "held out to test preserving": preserve_test,
    }
    check_disjoint(groups)
    both = {f.label for f in forget + forget_test} & {f.label for f in preserve + preserve_test}
    if both:
        raise UserError(
            f"{config.forget} and {config.preserve} both have a class {min(both)!r}: sub-folders "
            "are classes; rename one"
        )
    return Dataset(forget, preserve, forget_test, preserve_test)


def _side(
    config: RunConfig, folder: Path, held_out: Path | None, forget: bool
) -> tuple[list[ImageFile], list[ImageFile]]:
    default = "forget" if forget else "preserve"
    files = _choose(find_images(folder, default), config.concept, forget, folder)
    if held_out is None:
        return split_held_out(files, config.seed)
    return files, _choose(find_images(held_out, default), config.concept, forget, held_out)


def _choose(
    files: Sequence[ImageFile], concept: str | None, forget: bool, folder: Path
) -> list[ImageFile]:
    """The files whose class is (or, to preserve, is not) the concept."""
    if concept is None:
        return list(files)
    words = set(concept.lower().split())
    chosen = [file for file in files if (words <= set(file.label.lower().split())) == forget]
    if not chosen:
        classes = ", ".join(sorted({file.label for file in files}))
        which = "is" if forget else "is not"
        raise UserError(f"{folder}: no class {which} {concept!r}; its classes are {classes}")
    return chosen
