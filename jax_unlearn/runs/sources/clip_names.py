"""Source: names through CLIP's text encoder, and images to evaluate the result on."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import porting
from jax_unlearn.data.dataset import collect_prompts
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.prompts import prompts
from jax_unlearn.evaluate.judges import shown_folders
from jax_unlearn.features.clip_encoder import IMAGE, TEXT, ClipEncoder
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.source import (
    StageOf,
    sample_counts,
    split_seed,
    unsaved,
    with_statistics,
)
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.resume import Facts


class ClipNames:
    """A CLIP checkpoint and a run's names.

    Raises:
        UserError: the checkpoint, the names or the folders of images are refused.
    """

    mesh = None

    def __init__(self, config: RunConfig, console: Console) -> None:
        samples = config.samples
        self.dataset = collect_prompts(samples)
        clip = porting.load_clip(samples.checkpoint, config.extraction.dtype)
        self.encoder = ClipEncoder(clip, samples.checkpoint, console)
        self.linears = (self.encoder.projection(TEXT),)
        self.reader = ImageReader(config.execution.strict)
        # Names instead of a file of names, so that the run does not depend on the file.
        names = [
            tuple(dict.fromkeys(prompt.label for prompt in group))
            for group in (self.dataset.forget, self.dataset.preserve)
        ]
        self.config = config.replace(forget_text=names[0], preserve_text=names[1])
        left_out = self.dataset.left_out
        folders = shown_folders(samples)
        self.image_files = {f: find_images(f, f.name, left_out) for f in folders}
        if samples.images:
            check_images(samples.images, self.image_files[samples.images], [*names[0], *names[1]])

    def fingerprint(self) -> Facts:
        return fingerprint(self.config, self.dataset, self.encoder.contents(), 1)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        """Encode the prompts, each of which is one row, and the images for evaluation."""
        encoder, data, samples = self.encoder, self.dataset, self.config.samples
        others = {
            f"others.{i}": encoder.texts(
                prompts(class_names(self.image_files[folder]), [samples.template])
            )
            for i, folder in enumerate(dict.fromkeys(samples.other_images))
        }
        train = Sides(encoder.texts(data.forget), encoder.texts(data.preserve))
        shown = {
            f"shown.{i}": encoder.images(files, self.reader, f"Images of {folder.name}")
            for i, (folder, files) in enumerate(self.image_files.items())
        }
        (projection,) = self.linears
        return Extracted(
            linears=self.linears,
            train=with_statistics(train, self.linears, split_seed(self.config)),
            test=Sides(encoder.texts(data.forget_held_out), encoder.texts(data.preserve_held_out)),
            empty={TEXT: projection.output(encoder.text_taps([""]))[0]},
            counts=sample_counts(data, self.reader.skipped),
            judged_linears=(encoder.projection(IMAGE),),
            judged=shown | others,
        )


def class_names(files: Sequence[ImageFile]) -> list[str]:
    return sorted({file.label for file in files})


def check_images(folder: Path, files: Sequence[ImageFile], names: Sequence[str]) -> None:
    """Warn about names without a sub-folder, and sub-folders that are not among the names.

    Raises:
        UserError: no sub-folder is named like one of the names.
    """
    found = set(class_names(files))
    if not found & set(names):
        raise UserError(f"{folder}: none of its sub-folders is one of the names; rename them")
    if missing := sorted(set(names) - found):
        warnings.warn(f"{folder} has no images of {', '.join(missing)}", stacklevel=2)
    if spare := sorted(found - set(names)):
        warnings.warn(
            f"{folder}: left out sub-folders that are not among the names: {', '.join(spare)}",
            stacklevel=2,
        )
