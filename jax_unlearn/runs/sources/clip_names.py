"""Source: names through CLIP's text encoder, and images to evaluate the result on."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rich.console import Console

from jax_unlearn.data.class_names import FolderNames, folder_prompts, match_folders
from jax_unlearn.data.dataset import collect_prompts
from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.prompts import Key, Prompt
from jax_unlearn.evaluate.judges import shown_folders
from jax_unlearn.features.clip_encoder import IMAGE, TEXT
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.open_encoder import open_clip_encoder
from jax_unlearn.runs.sources.source import (
    StageOf,
    digests_in_checkpoint,
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
        self.encoder = open_clip_encoder(samples.checkpoint, config.extraction.dtype, console)
        folders = shown_folders(samples)
        self.encoder.check_reads(names=True, images=bool(folders))
        self.dataset = collect_prompts(samples, self.encoder.key)
        self.reader = ImageReader(config.execution.strict)
        # Names instead of a file of names, so that the run does not depend on the file.
        names = [
            tuple(dict.fromkeys(prompt.label for prompt in group))
            for group in (self.dataset.forget, self.dataset.preserve)
        ]
        self.config = config.replace(forget_text=names[0], preserve_text=names[1])
        left_out, folder_names = self.dataset.left_out, FolderNames.read(samples.names)
        self.image_files = {
            f: folder_names.apply(find_images(f, f.name, left_out)) for f in folders
        }
        folder_names.check_used()
        if folder := samples.images:
            self.image_files[folder] = named_images(
                folder, self.image_files[folder], names[0], names[1], self.encoder.key
            )
        prompts = [*self.dataset.samples(), *chain(*self._others().values())]
        self.encoder.lengths([prompt.text for prompt in prompts])
        # The weights are loaded here, after all that can be checked without them.
        self.linears = (self.encoder.projection(TEXT),)

    def stored_linears(self) -> dict[str, str]:
        return digests_in_checkpoint(self.config, self.linears)

    def fingerprint(self) -> Facts:
        return fingerprint(self.config, self.dataset, self.encoder.contents(), 1)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        """Encode the prompts, each of which is one row, and the images for evaluation."""
        encoder, data = self.encoder, self.dataset
        others = {name: encoder.texts(prompts) for name, prompts in self._others().items()}
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
            judged_linears=(encoder.projection(IMAGE),) if encoder.has(IMAGE) else (),
            judged=shown | others,
        )

    def _others(self) -> dict[str, list[Prompt]]:
        """Prompts of the classes of each of the other folders."""
        samples = self.config.samples
        return {
            f"others.{i}": folder_prompts(class_names(self.image_files[folder]), samples.template)
            for i, folder in enumerate(dict.fromkeys(samples.other_images))
        }


def class_names(files: Sequence[ImageFile]) -> list[str]:
    return sorted({file.label for file in files})


def named_images(
    folder: Path,
    files: Sequence[ImageFile],
    forget: Sequence[str],
    preserve: Sequence[str],
    key: Key,
) -> list[ImageFile]:
    """The images with the names of their sub-folders, as they are in the lists.

    Warns about names to keep without a sub-folder, and sub-folders that are not among the names.

    Args:
        folder: the folder, for messages.
        files: its images.
        forget: the names to forget.
        preserve: the names to keep.
        key: equal for two names that are the same to the model.

    Raises:
        UserError: a name to forget has no image.
    """
    names = match_folders(class_names(files), (*forget, *preserve), key)
    found = set(names.values())
    if unseen := [name for name in forget if name not in found]:
        raise UserError(
            f"{folder}: has no image of {', '.join(unseen)}, so that nothing could show that it is "
            "forgotten; rename its sub-folder, give --names FILE, or leave out --images"
        )
    if missing := sorted(set(preserve) - found):
        warnings.warn(f"{folder} has no images of {', '.join(missing)}", stacklevel=2)
    if spare := sorted(set(class_names(files)) - set(names)):
        warnings.warn(
            f"{folder}: left out sub-folders that are not among the names: {', '.join(spare)}",
            stacklevel=2,
        )
    return [replace(file, label=names.get(file.label, file.label)) for file in files]
