"""The four groups of samples of a run: forget and preserve, each for training and held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from jax_unlearn.data.digests import read_digests
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt, check_apart, prompts, read_names
from jax_unlearn.data.splits import check_disjoint, split_held_out
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

IMAGES = ("qwen_images", "clip_images")
NAMES = "clip_names"

S = TypeVar("S", ImageFile, Prompt)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Inputs of a run: a checkpoint, and samples to forget and to preserve."""

    checkpoint: Path
    """Directory of a checkpoint of the Qwen3-VL, Qwen3-Omni or Qwen3.5 family, or of CLIP."""
    forget: Path | None = used_if(None, source=IMAGES)
    """Folder of images to forget; sub-folders are classes."""
    preserve: Path | None = used_if(None, source=IMAGES)
    """Folder of images to keep; sub-folders are classes."""
    forget_text: tuple[str, ...] = ()
    """CLIP: names to forget, or a .txt file with one name per line; the text side is adapted."""
    preserve_text: tuple[str, ...] = used_if((), source=NAMES)
    """CLIP: names to keep, or a .txt file with one name per line."""
    train_templates: tuple[str, ...] = used_if(("{}",), source=NAMES)
    """CLIP: prompts used in training, with {} in place of the name."""
    template: str = used_if("a photo of a {}.", source=(NAMES, "clip_images"))
    """CLIP: the prompt used in evaluation, with {} in place of the name."""
    images: Path | None = used_if(None, source=NAMES)
    """CLIP's text side: folder of images to classify before and after, in sub-folders named as in
    --forget-text and --preserve-text."""
    other_images: tuple[Path, ...] = used_if((), source=NAMES)
    """CLIP's text side: folders of other data sets, each classified among its own sub-folders."""
    forget_held_out: Path | None = used_if(None, source=IMAGES)
    """Held-out images to forget, for evaluation; by default a seeded fifth of each class of
    --forget."""
    preserve_held_out: Path | None = used_if(None, source=IMAGES)
    """Held-out images to keep, for evaluation; by default a seeded fifth of each class of
    --preserve."""
    concept: str | None = used_if(None, source=IMAGES)
    """Forget the classes whose names contain all these words and keep the others; --forget and
    --preserve may then be one folder."""
    questions: Path | None = used_if(None, source="qwen_images")
    """JSON list of {question, answers: {class: answer}} for `evaluate --vlm`."""
    statistics: Path | None = None
    """Directory of an earlier run whose saved statistics are fitted again, without reading images
    or running a tower or encoder. Its settings are the defaults; those its statistics depend on
    cannot be changed."""


@dataclass(frozen=True)
class Dataset(Generic[S]):
    """The images or prompts of a run; the held-out ones are used for evaluation only."""

    forget: list[S]
    preserve: list[S]
    forget_held_out: list[S]
    preserve_held_out: list[S]

    def groups(self) -> dict[str, list[S]]:
        """The groups by their names in metrics.json."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def labels(self) -> list[str]:
        """Sorted classes of the held-out samples, the ones that evaluation asks about."""
        return sorted({sample.label for sample in self.forget_held_out + self.preserve_held_out})

    def samples(self) -> list[S]:
        """The samples of all groups."""
        return [sample for group in self.groups().values() for sample in group]

    def fingerprint(self, *names: str) -> str:
        """SHA-256 (hex) of every sample's group, class and digest.

        Args:
            names: the groups to include; all if none is given.
        """
        total = hashlib.sha256()
        for number, (name, samples) in enumerate(self.groups().items()):
            for sample in samples if name in names or not names else ():
                total.update(f"{number} {sample.label} {sample.digest.hex()}\n".encode())
        return total.hexdigest()


def collect(config: SampleSettings, seed: int) -> Dataset[Any]:
    """Collect the images or the prompts of a run; `seed` draws the held-out images."""
    return collect_prompts(config) if config.forget_text else collect_images(config, seed)


def collect_prompts(config: SampleSettings) -> Dataset[Prompt]:
    """Collect prompts: for training from --train-templates, held out from --template.

    Raises:
        UserError: a list has no names, a name occurs twice or in both lists, or a template does not
            have exactly one {}.
    """
    forget = read_names(config.forget_text, "--forget-text")
    preserve = read_names(config.preserve_text, "--preserve-text")
    check_apart(forget, preserve)
    train = [prompts(names, config.train_templates) for names in (forget, preserve)]
    return Dataset(*train, *(prompts(names, [config.template]) for names in (forget, preserve)))


def collect_images(config: SampleSettings, seed: int) -> Dataset[ImageFile]:
    """Find the images and split them; `seed` draws the held-out ones.

    Raises:
        UserError: a folder is missing or empty, no class matches the concept, there are too few
            images to hold one out, or an image or a class is in two groups.
    """
    if config.forget is None or config.preserve is None:
        raise UserError(
            "--forget and --preserve: give a folder of images each, or for a CLIP checkpoint give "
            "names with --forget-text and --preserve-text"
        )
    forget, forget_test = _side(config.concept, config.forget, config.forget_held_out, True, seed)
    preserve, preserve_test = _side(
        config.concept, config.preserve, config.preserve_held_out, False, seed
    )
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
    concept: str | None, folder: Path, held_out: Path | None, forget: bool, seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    default = "forget" if forget else "preserve"
    files = _choose(find_images(folder, default), concept, forget, folder)
    read_digests(files)
    if held_out is None:
        return split_held_out(files, seed)
    return files, _choose(find_images(held_out, default), concept, forget, held_out)


def _choose(
    files: Sequence[ImageFile], concept: str | None, forget: bool, folder: Path
) -> list[ImageFile]:
    """The files whose class matches the concept, or, to preserve, those whose class does not."""
    if concept is None:
        return list(files)
    words = set(concept.lower().split())
    chosen = [file for file in files if (words <= set(file.label.lower().split())) == forget]
    if not chosen:
        classes = ", ".join(sorted({file.label for file in files}))
        which = "is" if forget else "is not"
        raise UserError(f"{folder}: no class {which} {concept!r}; its classes are {classes}")
    return chosen
