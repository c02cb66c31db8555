"""Source: a checkpoint and a run's samples, checked and ready for extraction."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

import porting
from jax_unlearn.data.dataset import Dataset
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.hub import local_checkpoint
from jax_unlearn.runtime.resume import Facts
from jax_unlearn.runtime.snapshots import NoSnapshots, Stage

StageOf = Callable[[str], Stage]


def unsaved(_: str) -> Stage:
    """A stage of a run that keeps no snapshots."""
    return NoSnapshots()


@runtime_checkable
class Source(Protocol):
    """A checkpoint and a run's samples, as `open_source` returns them; its input is checked.

    config: the settings, with lists of names read from their files. linears: the adaptable Linears.
    mesh: the devices that run the tower; None if only JAX's first device is used.
    """

    @property
    def config(self) -> RunConfig: ...

    @property
    def dataset(self) -> Dataset[Any]: ...

    @property
    def linears(self) -> Sequence[FrozenLinear]: ...

    @property
    def mesh(self) -> Mesh | None: ...

    def stored_linears(self) -> dict[str, str]:
        """Digest of each of the Linears as its checkpoint stores it."""

    def fingerprint(self) -> Facts:
        """Facts that must match between the processes of a run, and when it is resumed."""

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        """Run the frozen model over the samples, once."""


def digests_in_checkpoint(config: RunConfig, linears: Sequence[FrozenLinear]) -> dict[str, str]:
    """Digest of each Linear as the checkpoint of a run stores it now."""
    checkpoint = local_checkpoint(config.samples.checkpoint)
    return porting.linear_digests(checkpoint, [linear.name for linear in linears])


def sample_counts(dataset: Dataset[Any], skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Number of samples in each group, without the skipped ones, and the forgotten classes."""
    names = {name for name, _ in skipped}
    counts = {
        name: sum(getattr(sample, "name", None) not in names for sample in group)
        for name, group in dataset.groups().items()
    }
    named = [f"{name}: {reason}" for name, reason in skipped]
    found = {
        **counts,
        "forget_classes": sorted({sample.label for sample in dataset.forget}),
        "skipped": named,
        "fingerprint": dataset.fingerprint(),
    }
    left_out = dataset.left_out.lines()
    return found | {"left_out": left_out} if left_out else found


def with_statistics(sides: Sides, linears: Sequence[FrozenLinear], split: int | None) -> Sides:
    """Add the statistics of the rows of both sides, which have one row per sample.

    Args:
        sides: the features.
        linears: the Linears at whose inputs rows are summed.
        split: seed that holds out samples to choose the adapter by; None for no hold-out.
    """
    return Sides(
        side_with_statistics(sides.forget, linears, split, True),
        side_with_statistics(sides.preserve, linears, split, False),
    )


def side_with_statistics(
    features: SampleFeatures, linears: Sequence[FrozenLinear], split: int | None, forget: bool
) -> SampleFeatures:
    """Add the statistics of the rows of one side; see `with_statistics`."""
    statistics = SideStatistics(linears, forget, "images", features.files, split)
    for i in range(len(features.files)):
        statistics.add(i, {name: tap.x[i : i + 1] for name, tap in features.taps.items()})
    return statistics.finish(features, range(len(features.files)))


def split_seed(config: RunConfig) -> int | None:
    """Seed that holds out images to choose the adapter by; None without `select="held_out"`."""
    return config.solver.seed if config.solver.select == "held_out" else None


Contents = np.ndarray | bytes
