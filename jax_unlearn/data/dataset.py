"""The four groups of samples of a run: forget and preserve, each for training and held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from jax_unlearn.data.class_names import FolderNames, matches
from jax_unlearn.data.digests import read_contents
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Key, Prompt, check_apart, fold_name, prompts, read_names
from jax_unlearn.data.scan import LeftOut
from jax_unlearn.data.splits import check_disjoint, split_held_out
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import used_if

# The class of all images of a folder given by --stand-in.
STAND_IN_LABEL = "stand-in"
GROUPS = ("forget", "preserve", "forget_held_out", "preserve_held_out")
STAND_IN_GROUPS = ("stand_in", "stand_in_held_out")
IMAGES = ("qwen_images", "clip_images")
NAMES = "clip_names"

S = TypeVar("S", ImageFile, Prompt)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Inputs of a run: a checkpoint, and samples to forget and to preserve."""

    checkpoint: Path
    """Checkpoint of the Qwen3-VL, Qwen3-Omni or Qwen3.5 family, or of CLIP: its directory, or its
    id on the Hugging Face hub, such as Qwen/Qwen3-VL-2B-Instruct or ...@REVISION."""
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
    --forget-text and --preserve-text; underscores count as spaces if no sub-folder has the name
    otherwise."""
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
    --preserve may then be one folder. Underscores count as spaces if no class matches otherwise."""
    stand_in: str | None = used_if(None, source=IMAGES, target="stand_in")
    """With --target stand_in: words of the classes to keep that take the concept's place, or a
    folder of images that do; by default the nearest class."""
    names: Path | None = used_if(None, reads_images=True)
    """Names of sub-folders, such as n02123045: a text file with a folder, a tab and its name in
    each line."""
    questions: Path | None = used_if(None, source="qwen_images")
    """JSON list of {question, answers: {class: answer}} for `evaluate --vlm`, or the files of a
    published benchmark."""
    statistics: Path | None = None
    """Directory of an earlier run whose saved statistics are fitted again, without reading images
    or running a tower or encoder. Its settings are the defaults; those its statistics depend on
    cannot be changed."""


@dataclass(frozen=True)
class Dataset(Generic[S]):
    """The images or prompts of a run; the held-out ones are used for evaluation only.

    Attributes:
        unreadable: (name, reason) of images that cannot be read.
        left_out: other files in the folders.
        stand_in, stand_in_held_out: images of a folder given by --stand-in.
    """

    forget: list[S]
    preserve: list[S]
    forget_held_out: list[S]
    preserve_held_out: list[S]
    unreadable: Sequence[tuple[str, str]] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    stand_in: list[S] = field(default_factory=list)
    stand_in_held_out: list[S] = field(default_factory=list)

    def groups(self) -> dict[str, list[S]]:
        """The groups by their names in metrics.json; those of --stand-in if it is a folder."""
        names = (*GROUPS, *STAND_IN_GROUPS) if self.stand_in else GROUPS
        return {name: getattr(self, name) for name in names}

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


def collect_prompts(config: SampleSettings, key: Key = fold_name) -> Dataset[Prompt]:
    """Collect prompts: for training from --train-templates, held out from --template.

    Args:
        config: the names and templates.
        key: equal for two names that are the same to the model.

    Raises:
        UserError: a list has no names, a name occurs twice or in both lists, or a template does not
            have exactly one {}.
    """
    forget = read_names(config.forget_text, "--forget-text", key)
    preserve = read_names(config.preserve_text, "--preserve-text", key)
    check_apart(forget, preserve, key)
    train, test = config.train_templates, [config.template]
    return Dataset(
        prompts(forget, train),
        prompts(preserve, train),
        prompts(forget, test),
        prompts(preserve, test),
    )


def collect_images(config: SampleSettings, seed: int, strict: bool = False) -> Dataset[ImageFile]:
    """Find, read and split the images.

    Images that cannot be read are left out before the split, and listed in `unreadable`.

    Args:
        config: the folders and the concept.
        seed: seed that draws the held-out images.
        strict: stop at the first image that cannot be read.

    Raises:
        UserError: a folder is missing, empty or inside the other, no class matches the concept,
            --names lists none of the sub-folders, there are too few images to hold one out, an
            image or a class is in two groups, or with `strict` an image cannot be read.
    """
    if config.forget is None or config.preserve is None:
        raise UserError(
            "--forget and --preserve: give a folder of images each, or for a CLIP checkpoint give "
            "names with --forget-text and --preserve-text"
        )
    if config.concept is None:
        check_folders_disjoint(config.forget, config.preserve)
    found, left_out, names = ReadableFiles(strict), LeftOut(), FolderNames.read(config.names)
    sides = [
        _side(config.concept, folder, held_out, forget, seed, found, left_out, names)
        for folder, held_out, forget in (
            (config.forget, config.forget_held_out, True),
            (config.preserve, config.preserve_held_out, False),
        )
    ]
    stand_in: tuple[list[ImageFile], list[ImageFile]] = ([], [])
    if folder := stand_in_folder(config, sides[1][0]):
        files = find_images(folder, STAND_IN_LABEL, left_out)
        one_class = [replace(file, label=STAND_IN_LABEL) for file in files]
        stand_in = split_held_out(found.select(one_class, folder), seed)
    names.check_used()
    (forget, forget_test), (preserve, preserve_test) = sides
    groups = {
        "to forget": forget,
        "to preserve": preserve,
        "held out to test forgetting": forget_test,
        "held out to test preserving": preserve_test,
        "of the stand-in": stand_in[0],
        "held out of the stand-in": stand_in[1],
    }
    check_disjoint(groups)
    both = {f.label for f in forget + forget_test} & {f.label for f in preserve + preserve_test}
    if both:
        raise UserError(
            f"{config.forget} and {config.preserve} both have a class {min(both)!r}: sub-folders "
            "are classes; rename one"
        )
    four = (forget, preserve, forget_test, preserve_test)
    return Dataset(*four, found.unreadable, left_out, *stand_in)


def stand_in_folder(config: SampleSettings, preserve: Sequence[ImageFile]) -> Path | None:
    """The folder that --stand-in names, unless it names classes to keep.

    Raises:
        UserError: it names neither.
    """
    if config.stand_in is None:
        return None
    labels = sorted({file.label for file in preserve})
    if matches(config.stand_in, labels):
        return None
    if not (folder := Path(config.stand_in)).is_dir():
        raise UserError(
            f"--stand-in {config.stand_in}: is neither a folder nor among the classes to keep: "
            f"{', '.join(labels)}"
        )
    return folder


def check_folders_disjoint(forget: Path, preserve: Path) -> None:
    """Check that no folder is inside the other, which would make images both forget and preserve.

    Raises:
        UserError: one is inside the other, or they are the same.
    """
    one, other = forget.resolve(), preserve.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        name = one.name if one != other else "NAME"
        raise UserError(
            f"--forget {forget} and --preserve {preserve}: one is inside the other; give the outer "
            f"folder to both and --concept {name!r}, or folders beside one another"
        )


@dataclass
class ReadableFiles:
    """Selects the files that can be decoded, and records the reason for each of the others."""

    strict: bool
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def select(self, files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
        """The files that can be decoded; at least one.

        Raises:
            UserError: no file can be decoded, or with `strict` one cannot.
        """
        read_contents(files)
        faults = [(file.name, file.contents.fault) for file in files if file.contents.fault]
        if faults and (self.strict or len(faults) == len(files)):
            name, why = faults[0]
            none = "" if self.strict else f"{folder}: none of its {len(files)} images can be read; "
            raise UserError(f"{none}{name}: cannot be read ({why}); repair or remove it")
        self.unreadable += [(name, why) for name, why in faults if why]
        return [file for file in files if not file.contents.fault]


def _side(
    concept: str | None,
    folder: Path,
    held_out: Path | None,
    forget: bool,
    seed: int,
    readable: ReadableFiles,
    left_out: LeftOut,
    names: FolderNames,
) -> tuple[list[ImageFile], list[ImageFile]]:
    """(training images, held-out images) of one side."""

    def images(folder: Path) -> list[ImageFile]:
        default = "forget" if forget else "preserve"
        files = names.apply(find_images(folder, default, left_out))
        return readable.select(_choose(files, concept, forget, folder), folder)

    files = images(folder)
    return split_held_out(files, seed) if held_out is None else (files, images(held_out))


def _choose(
    files: Sequence[ImageFile], concept: str | None, forget: bool, folder: Path
) -> list[ImageFile]:
    """The files whose class matches the concept, or, to preserve, those whose class does not."""
    if concept is None:
        return list(files)
    matching = matches(concept, (file.label for file in files))
    chosen = [file for file in files if (file.label in matching) == forget]
    if not chosen:
        classes = ", ".join(sorted({file.label for file in files}))
        which = "is" if forget else "is not"
        raise UserError(f"{folder}: no class {which} {concept!r}; its classes are {classes}")
    return chosen
