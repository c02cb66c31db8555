"""Source: images through CLIP's image encoder, and their class names through its text encoder."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from jax_unlearn.data.class_names import folder_prompts
from jax_unlearn.data.dataset import collect_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.clip_encoder import IMAGE, TEXT
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.features.stand_in import Counterpart, StandIn
from jax_unlearn.objective.counterparts import counterparts
from jax_unlearn.objective.projectors import projectors_of
from jax_unlearn.objective.stand_in import stand_in_of
from jax_unlearn.objective.targets import STAND_IN
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
from jax_unlearn.runs.sources.stand_in import images_of, resolved, stand_in_files
from jax_unlearn.runtime.resume import Facts


class ClipImages:
    """A CLIP checkpoint and a run's images.

    Raises:
        UserError: the checkpoint, the images or the settings are refused.
    """

    mesh = None

    def __init__(self, config: RunConfig, console: Console) -> None:
        samples = config.samples
        self.dataset = collect_images(samples, config.solver.seed, config.execution.strict)
        self.encoder = open_clip_encoder(samples.checkpoint, config.extraction.dtype, console)
        self.encoder.check_reads(names=bool(self._named()), images=True)
        self.reader = ImageReader(config.execution.strict, [*self.dataset.unreadable])
        self.config = resolved(config, self.dataset)
        if prompts := self._prompts():
            self.encoder.lengths([prompt.text for prompt in prompts])
        # The weights are loaded here, after all that can be checked without them.
        self.linears = (self.encoder.projection(IMAGE),)

    def stored_linears(self) -> dict[str, str]:
        return digests_in_checkpoint(self.config, self.linears)

    def fingerprint(self) -> Facts:
        return fingerprint(self.config, self.dataset, self.encoder.contents(), 1)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        """Encode the images; each is one row."""
        data, encoder = self.dataset, self.encoder
        names = self._names()
        train = self._sides(data.forget, data.preserve, "Training")
        samples = self.config.samples
        projectors = projectors_of(self.linears)
        classes = {file.label for file in data.preserve}
        pairs = counterparts(projectors, train, samples.concept, samples.stand_in, classes)
        stand_ins: tuple[StandIn, ...] = ()
        judged = {"names": names} if names else {}
        if self.config.objective.target == STAND_IN:
            stand_ins = tuple(self._stand_in(train, pair) for pair in pairs)
            if held_out := data.stand_in_held_out:
                what = "Held-out images of the stand-in"
                judged[STAND_IN] = encoder.images(held_out, self.reader, what)
        test = self._sides(data.forget_held_out, data.preserve_held_out, "Held-out")
        blank = encoder.image_batch([encoder.blank()]).taps[IMAGE]
        (projection,) = self.linears
        return Extracted(
            linears=self.linears,
            train=with_statistics(train, self.linears, split_seed(self.config)),
            test=test,
            empty={IMAGE: projection.output(np.asarray(blank, np.float32))[0]},
            counts=sample_counts(data, self.reader.skipped),
            judged_linears=(encoder.projection(TEXT),) if encoder.has(TEXT) else (),
            judged=judged,
            counterparts=pairs,
            stand_ins=stand_ins,
        )

    def _stand_in(self, train: Sides, pair: Counterpart) -> StandIn:
        """The images that take the place of a concept; each is one row, without tokens."""
        files = stand_in_files(self.linears, train, pair, self.dataset)
        if self.dataset.stand_in:
            features = self.encoder.images(files, self.reader, "Stand-in images")
        else:
            chosen = set(files)
            places = [i for i, file in enumerate(train.preserve.files) if file in chosen]
            features = train.preserve.chosen(np.array(places))
        return stand_in_of(self.linears, train.forget, images_of(train, pair), features, pair)

    def _named(self) -> list[str]:
        """The classes; none if folders without sub-folders or a model without texts have no names.

        Without the text encoder no name can be encoded.
        """
        labels = self.dataset.labels()
        flat = {"forget", "preserve"} & set(labels)
        return labels if self.encoder.has(TEXT) and not flat else []

    def _names(self) -> SampleFeatures | None:
        """Features of prompts of the classes; None if they have no names."""
        prompts = self._prompts()
        return self.encoder.texts(prompts) if prompts else None

    def _prompts(self) -> list[Prompt]:
        return folder_prompts(self._named(), self.config.samples.template)

    def _sides(
        self, forget: Sequence[ImageFile], preserve: Sequence[ImageFile], what: str
    ) -> Sides:
        images = self.encoder.images
        return Sides(
            images(forget, self.reader, f"{what} images to forget"),
            images(preserve, self.reader, f"{what} images to preserve"),
        )
