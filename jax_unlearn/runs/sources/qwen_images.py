"""Source: images through a Qwen3 vision tower."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from jax_unlearn.data.dataset import collect_images
from jax_unlearn.data.images import ImageFile, ImageReader
from jax_unlearn.data.scan import printable
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures, Sides, images
from jax_unlearn.features.stand_in import Counterpart, StandIn
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.objective.counterparts import counterparts
from jax_unlearn.objective.problem import linears_to_adapt
from jax_unlearn.objective.stand_in import stand_in_of
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.default_target import with_default_target
from jax_unlearn.runs.sources.qwen_tower import QwenTower
from jax_unlearn.runs.sources.source import (
    StageOf,
    digests_in_checkpoint,
    sample_counts,
    split_seed,
    unsaved,
)
from jax_unlearn.runs.sources.stand_in import images_of, resolved, stand_in_files
from jax_unlearn.runtime.mesh import shape_of
from jax_unlearn.runtime.resume import Facts

# Number of images of each kind of which a few tokens are kept, for covariances and readers.
MOST_SAMPLED = 512
# Largest number of stand-in images of a concept; more would only take memory and time.
MOST_STAND_IN = 2000


class QwenImages:
    """A checkpoint's tower and a run's images.

    Raises:
        UserError: the checkpoint, the images or the settings are refused.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.console = console
        self.dataset = collect_images(config.samples, config.solver.seed, config.execution.strict)
        config, self.target_reason = with_default_target(config, self.dataset)
        self.config = resolved(config, self.dataset)
        self.tower = QwenTower(self.config)
        self.linears, self.projectors = self.tower.linears, self.tower.projectors
        self.preprocessor = self.tower.preprocessor
        self.mesh, self.extractor = self.tower.mesh, self.tower.extractor
        self.reader = ImageReader(config.execution.strict, [*self.dataset.unreadable])

    def fingerprint(self) -> Facts:
        # The shape of the mesh is included, as it determines the order and rounding of sums.
        return fingerprint(self.config, self.dataset, self.tower.contents(), shape_of(self.mesh))

    def stored_linears(self) -> dict[str, str]:
        return digests_in_checkpoint(self.config, self.linears)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        data, samples = self.dataset, self.config.samples
        if self.target_reason is not None:
            self.console.out(printable(self.target_reason), highlight=False)
        train = Sides(
            self._train(data.forget, True, stage_of), self._train(data.preserve, False, stage_of)
        )
        means = train.image_means()
        classes = {file.label for file in data.preserve}
        pairs = counterparts(self.projectors, means, samples.concept, samples.stand_in, classes)
        stand_ins: tuple[StandIn, ...] = ()
        judged: dict[str, SampleFeatures] = {}
        if self.config.objective.target == STAND_IN:
            stand_ins = self._stand_ins(train, pairs, stage_of)
            # Their moments are summed.
            train = replace(train, forget=replace(train.forget, tokens={}))
            if held_out := data.stand_in_held_out:
                judged = {STAND_IN: self._test(held_out, STAND_IN, stage_of, held_out)}
        moved_onto = {label for pair in pairs for label in pair.preserve}
        compared = [f for f in data.preserve_held_out if f.label in moved_onto or not moved_onto]
        test = Sides(
            self._test(data.forget_held_out, "forget", stage_of, data.forget_held_out),
            self._test(data.preserve_held_out, "preserve", stage_of, compared),
        )
        return Extracted(
            linears=self.linears,
            train=train,
            test=test,
            empty=self.tower.blank(images(train.forget)[0]),
            counts=sample_counts(data, self.reader.skipped),
            judged=judged,
            counterparts=pairs,
            stand_ins=stand_ins,
            throughput=self.extractor.work.metrics(),
        )

    def _stand_ins(
        self, train: Sides, pairs: Sequence[Counterpart], stage_of: StageOf
    ) -> tuple[StandIn, ...]:
        """One more pass, over the stand-in images and some images to keep, for their tokens."""
        data, linears = self.dataset, [one.last for one in self.projectors]
        chosen = [
            self._drawn(stand_in_files(linears, train, pair, data), MOST_STAND_IN) for pair in pairs
        ]
        kept = self._drawn(data.preserve, MOST_SAMPLED)
        files = [*dict.fromkeys(file for group in (*chosen, kept) for file in group)]
        found = self.extractor.extract(
            files, self.reader, "Stand-in images", self.console,
            stage=stage_of(STAND_IN), sampled=set(files),
        )  # fmt: skip
        place = {file: i for i, file in enumerate(found.files)}

        def features(group: Sequence[ImageFile]) -> SampleFeatures:
            return found.chosen(np.array([place[file] for file in group if file in place], int))

        return tuple(
            stand_in_of(
                linears,
                train.forget,
                images_of(train, pair),
                features(group),
                pair,
                features(kept),
            )
            for pair, group in zip(pairs, chosen, strict=True)
        )

    def _train(self, files: Sequence[ImageFile], forget: bool, stage_of: StageOf) -> SampleFeatures:
        config, extractor = self.config, self.extractor
        granularity = config.extraction.granularity
        adapted = set(linears_to_adapt(config.objective, [one.name for one in self.linears]))
        linear = [p for p in self.projectors if p.is_linear]
        statistics = SideStatistics(
            [one.last for one in linear if one.last.name in adapted],
            forget,
            granularity,
            files,
            split_seed(config),
            self.mesh if extractor.on_device else None,
        )
        # Before a GELU statistics do not suffice, and all rows are kept.
        through_gelu = {p.last.name for p in self.projectors} - {p.last.name for p in linear}
        # Targets need every forget image, and a GELU every row; else some means suffice.
        some = not forget and not through_gelu
        name = "forget" if forget else "preserve"
        return extractor.extract(
            files,
            self.reader,
            f"Training images to {name}",
            self.console,
            through_gelu if granularity == "tokens" else (),
            statistics,
            set(self._some(files)) if some else None,
            stage_of(name),
            set(files) if forget and config.objective.target == STAND_IN else (),
        )

    def _test(
        self,
        files: Sequence[ImageFile],
        name: str,
        stage_of: StageOf,
        compared: Sequence[ImageFile],
    ) -> SampleFeatures:
        """Features of held-out images; of those in `compared` also a few tokens."""
        what = "the stand-in" if name == STAND_IN else f"images to {name}"
        stage = stage_of(f"{name}-held-out")
        most, console = self.config.extraction.keep_means, self.console
        # Of many files some that are compared are kept for sure, but no more than half of all.
        some = MOST_SAMPLED if len(files) <= most else min(MOST_SAMPLED, most // 2)
        sampled = set(self._drawn(compared, some))
        others = [file for file in files if file not in sampled]
        drawn = {*sampled, *self._drawn(others, most - len(sampled))}
        kept = [file for file in files if file in drawn]
        return self.extractor.extract(
            kept, self.reader, f"Held-out {what}", console, stage=stage, sampled=sampled
        )

    def _some(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """At most `keep_means` files, drawn with the seed."""
        return self._drawn(files, self.config.extraction.keep_means)

    def _drawn(self, files: Sequence[ImageFile], most: int) -> list[ImageFile]:
        if len(files) <= most:
            return list(files)
        random = np.random.default_rng(self.config.solver.seed)
        return [files[i] for i in sorted(random.choice(len(files), most, replace=False))]
