"""Source: the statistics.safetensors of an earlier run, without its samples and a tower."""

from pathlib import Path

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.sources.source import StageOf, split_seed, unsaved
from jax_unlearn.runtime.digests import check_digests
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.resume import Facts
from jax_unlearn.runtime.used_if import leaf_fields, option


class SavedStatistics:
    """The statistics of the run whose directory is `config.samples.statistics`.

    Raises:
        UserError: it is not a run, it has no statistics, or a setting was changed that they depend
            on.
    """

    mesh = None

    def __init__(self, config: RunConfig) -> None:
        run = config.samples.statistics
        assert run is not None
        check_same(config, run)
        self.config, self.file = config, read_statistics(run)
        self.dataset = self.file.dataset()
        self.extracted = self.file.extracted()
        self.linears = self.extracted.linears
        if self.file.splits != (split_seed(config) is not None):
            made, cure = ("with", "select") if self.file.splits else ("without", "do not select")
            raise UserError(
                f"--select {config.solver.select}: {run} was made {made} images to choose by; "
                f"{cure} held_out"
            )

    def stored_linears(self) -> dict[str, str]:
        """Of the checkpoint that the statistics were made with, which may be gone."""
        assert self.config.samples.statistics is not None
        return check_digests(self.config.samples.statistics)

    def fingerprint(self) -> Facts:
        """The fingerprint of the statistics file; the samples, which may be gone, are not read."""
        contents = [self.file.path.read_bytes()]
        total = self.file.counts["fingerprint"]
        return fingerprint(self.config, self.dataset, contents, 1, samples=total)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        return self.extracted


def check_same(config: RunConfig, run: Path) -> None:
    """Refuse settings that differ from those the statistics were made with.

    Raises:
        UserError: a setting of the samples or the extraction differs; names it.
    """
    check_digests(run, "config.json")
    earlier = read_config(run)
    for group in ("samples", "extraction"):
        ours, theirs = getattr(config, group), getattr(earlier, group)
        for name in leaf_fields(ours):
            if name != "statistics" and getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"{option(name)}: {run} was made with another value; run without --statistics"
                )
