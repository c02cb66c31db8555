"""The four groups of samples of a run: to forget and to keep, to train on and to test with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

from jax_unlearn.data.digests import read_digests
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt, check_apart, prompts, read_names
from jax_unlearn.data.splits import check_disjoint, split_held_out
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.errors import UserError

S = TypeVar("S", ImageFile, Prompt)


@dataclass(frozen=True)
class Dataset(Generic[S]):
    """Images or prompts of a run; the held-out ones are for evaluation only."""

    forget: list[S]
    preserve: list[S]
    forget_held_out: list[S]
    preserve_held_out: list[S]

    def groups(self) -> dict[str, list[S]]:
        """By their names in metrics.json."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def labels(self) -> list[str]:
        """Classes of the held-out samples, which are what is asked about."""
        return sorted({sample.label for sample in self.forget_held_out + self.preserve_held_out})

    def fingerprint(self, *names: str) -> str:
        """Changes when a sample of these groups, by default of all, its class or its group does."""
        total = hashlib.sha256()
        for number, (name, samples) in enumerate(self.groups().items()):
            for sample in samples if name in names or not names else ():
                total.update(f"{number} {sample.label} {sample.digest.hex()}\n".encode())
        return total.hexdigest()


def collect_prompts(config: RunConfig) -> Dataset[Prompt]:
    """Train prompts from --train-templates, held-out ones from --template.

    Raises:
        UserError: a list without names, a name twice or in both lists, or a bad template.
    """
    forget = read_names(config.forget_text, "--forget-text")
    preserve = read_names(config.preserve_text, "--preserve-text")
    check_apart(forget, preserve)
    train = [prompts(names, config.train_templates) for names in (forget, preserve)]
    return Dataset(*train, *(prompts(names, [config.template]) for names in (forget, preserve)))


def collect_images(config: RunConfig) -> Dataset[ImageFile]:
    """Find and split the images.

    Raises:
        UserError: an empty or missing folder, a concept that no class has, one image only, or the
            same image in two groups.
    """
    if config.forget is None or config.preserve is None:
        raise UserError(
            "--forget and --preserve: give a folder of images each, or for a CLIP checkpoint names "
            "by --forget-text and --preserve-text"
        )
    forget, forget_test = _side(config, config.forget, config.forget_held_out, True)
    preserve, preserve_test = _side(config, config.preserve, config.preserve_held_out, False)
    groups = {
        "to forget": forget,
        "to preserve": preserve,
        "held out to test forgetting": forget_test,
        "held out to test preserving": preserve_test,
    }
    read_digests([file for files in groups.values() for file in files])
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
    read_digests(files)
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
