"""One pass of the tower over the images of a folder, for the store of a ledger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from jax_unlearn.data.class_names import FolderNames
from jax_unlearn.data.dataset import ReadableFiles
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.scan import LeftOut
from jax_unlearn.data.splits import check_disjoint, split_held_out
from jax_unlearn.runs.fingerprint import digest
from jax_unlearn.runs.ledger.mixed import parts, without_image_means
from jax_unlearn.runs.ledger.store import StoredImages, StoredTower
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.qwen_tower import QwenTower

NO_ROWS = np.zeros((0, 0), np.float32)


class Start(NamedTuple):
    """What a ledger begins with: the samples to preserve, the Linears, a digest of the model, and
    what was left out, in words."""

    preserve: StoredImages
    tower: StoredTower
    contents: str
    left_out: list[str]


@dataclass
class Folders:
    """Reads folders of images, and counts what is left out of them.

    strict: stop at the first image that cannot be read. names: the classes of sub-folders.
    copies: number of images that are there more than once, which count once.
    """

    strict: bool
    names: FolderNames
    left_out: LeftOut = field(default_factory=LeftOut)
    copies: int = 0

    def __post_init__(self) -> None:
        self.readable = ReadableFiles(self.strict)

    def images(self, folder: Path, label: str) -> list[ImageFile]:
        """The images of a folder, each once, in the order of their digests.

        Raises:
            UserError: the folder has no image that can be read.
        """
        found = self.names.apply(find_images(folder, label, self.left_out))
        files = self.readable.select(found, folder)
        by_digest: dict[bytes, ImageFile] = {}
        for file in files:
            by_digest.setdefault(file.digest, file)
        self.copies += len(files) - len(by_digest)
        return [by_digest[key] for key in sorted(by_digest)]

    def lines(self) -> list[str]:
        """What was left out, in words."""
        skipped = [f"skipped {name}: {why}" for name, why in self.readable.unreadable]
        copies = [f"{self.copies} copies of other images: each image counts once"]
        return skipped + self.left_out.lines() + (copies if self.copies else [])


def begin_images(config: RunConfig, image_means: bool, console: Console) -> Start:
    """Run the tower over the images to preserve.

    Raises:
        UserError: the images, the checkpoint or the settings are refused.
    """
    samples = config.samples
    assert samples.preserve is not None
    folders = Folders(config.execution.strict, FolderNames.read(samples.names))
    groups = split(
        folders, samples.preserve, samples.preserve_held_out, "preserve", config.solver.seed
    )
    folders.names.check_used()
    tower = QwenTower(config)
    files = [*groups[0], *groups[1]]
    unread = without_rows(files, [False] * len(groups[0]) + [True] * len(groups[1]))
    if not image_means:
        # Before the tower is run.
        parts(unread)
    images = with_rows(unread, files, None, lambda: tower, console)
    if not image_means:
        images = without_image_means(images)
    stored = StoredTower(tower.linears, tower.blank(groups[0][0]))
    return Start(images, stored, digest(tower.contents()), folders.lines())


def split(
    folders: Folders, folder: Path, held_out: Path | None, label: str, seed: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """(training images, held-out images) of a folder, by default a fifth of each class.

    Raises:
        UserError: a folder has no image, none can be held out, or one is in both.
    """
    files = folders.images(folder, label)
    if held_out is None:
        return split_held_out(files, seed)
    test = folders.images(held_out, label)
    check_disjoint({"to train with": files, "held out": test})
    return files, test


def without_rows(files: Sequence[ImageFile], held_out: Sequence[bool]) -> StoredImages:
    """Images before the tower has run over them, in the order of their digests."""
    order = sorted(range(len(files)), key=lambda i: files[i].digest)
    digests = b"".join(files[i].digest for i in order)
    return StoredImages(
        np.frombuffer(digests, np.uint8).reshape(-1, 32),
        np.array([held_out[i] for i in order], bool),
        tuple(files[i].label for i in order),
        # Absolute, so that they hold in any working directory.
        tuple(str(Path.cwd() / files[i].name) for i in order),
        {},
    )


def with_rows(
    images: StoredImages,
    files: Sequence[ImageFile],
    known: StoredImages | None,
    opened: Callable[[], QwenTower],
    console: Console,
) -> StoredImages:
    """Add the mean of each image's tokens: those that are known, and of the others by a pass.

    Args:
        images: the images, without rows.
        files: their files.
        known: images whose rows are known.
        opened: opens the tower, if there is an image that is not known.
        console: where progress is shown.

    Raises:
        UserError: an image cannot be read any more.
    """
    here = {key: i for i, key in enumerate(known.keys)} if known else {}
    by_digest = {file.digest: file for file in files}
    new = [by_digest[key] for key in images.keys if key not in here]
    # Each was read before, so that one which cannot be read now has changed since.
    taps = opened().extractor.extract(new, ImageReader(True), "Images", console).taps if new else {}
    place = {file.digest: i for i, file in enumerate(new)}
    rows = {
        name: np.array([taps[name].x[place[key]] if key in place else known_rows[here[key]]
                        for key in images.keys], np.float32)
        for name, known_rows in (known.rows if known else dict.fromkeys(taps, NO_ROWS)).items()
    }  # fmt: skip
    return replace(images, rows=rows)
