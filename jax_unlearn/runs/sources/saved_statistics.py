"""An earlier run's statistics.safetensors, to fit again without its samples and a tower."""

from pathlib import Path

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.statistics_file import read_statistics
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.sources.source import StageOf, split_seed, unsaved
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.resume import Facts
from jax_unlearn.runtime.used_if import leaf_fields, option


class SavedStatistics:
    """The statistics of the run whose directory is `config.samples.statistics`.

    Raises:
        UserError: not a run, one without statistics, or a setting that its samples would be needed
            for.
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
            raise UserError(
                f"--select {config.solver.select}: {run} was made without images to choose by, or "
                "with; select held_out as it did, or not at all"
            )

    def fingerprint(self) -> Facts:
        """The samples need not be there any more, and are not read."""
        contents = [self.file.path.read_bytes()]
        total = self.file.counts["fingerprint"]
        return fingerprint(self.config, self.dataset, contents, 1, samples=total)

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        return self.extracted


def check_same(config: RunConfig, run: Path) -> None:
    """Refuse settings that were fixed when the samples were read.

    Raises:
        UserError: names the setting.
    """
    earlier = read_config(run)
    for group in ("samples", "extraction"):
        ours, theirs = getattr(config, group), getattr(earlier, group)
        for name in leaf_fields(ours):
            if name != "statistics" and getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"{option(name)}: {run} was made with another; run without --statistics"
                )
