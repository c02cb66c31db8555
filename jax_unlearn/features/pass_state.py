"""PassState: what one pass of the tower has so far, rows of some images and statistics of all."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jax_unlearn.data.batches import Batch
from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import SampleFeatures, TapRows, ends_merger
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.runtime import collectives
from jax_unlearn.runtime.snapshots import Snapshot

TapArrays = dict[str, Float[np.ndarray, "_ d_in"]]


class PassState:
    """Takes in images one by one, whatever their order.

    Args:
        files: of the pass, by whose place in it the images are called.
        names: the taps.
        tokens: taps of a Merger's last Linear of which all tokens are kept, and not the mean of
            each image; of other taps they always are.
        keep: of which files rows are kept; of all, if not given.
        statistics: statistics of all images, if they are wanted.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        names: Sequence[str],
        tokens: Collection[str] = (),
        keep: Collection[ImageFile] | None = None,
        statistics: SideStatistics | None = None,
    ) -> None:
        self.files, self.names, self.tokens = files, names, tokens
        self.keep, self.statistics = keep, statistics
        # Digest of which images each step has.
        self.plan = ""
        self.steps = 0
        self.rows: dict[int, TapArrays] = {}
        self.skipped: dict[int, str] = {}

    def planned(self, steps: Sequence[Sequence[Batch]]) -> None:
        """Remember which images each step has, which must be the same for a pass that goes on."""
        listed = [[(item.index, item.patches) for b in step for item in b.items] for step in steps]
        self.plan = hashlib.sha256(repr(listed).encode()).hexdigest()

    def skip(self, reasons: Mapping[int, str]) -> None:
        """Images that cannot be read, and why."""
        self.skipped |= reasons

    def step_done(self) -> None:
        """Count a step whose images have all been added."""
        self.steps += 1

    def needs_tokens(self, name: str) -> bool:
        """Whether `add` asks for all tokens at a tap, and not for their mean alone."""
        kept = not ends_merger(name) or name in self.tokens
        return kept or bool(self.statistics and self.statistics.needs_tokens(name))

    def add(self, image: int, taps: Mapping[str, Float[np.ndarray, "tokens d_in"]]) -> None:
        """The tokens of one image at each tap, or their mean where it is all that is needed."""
        if self.statistics:
            self.statistics.add(image, taps)
        if self.keep is None or self.files[image] in self.keep:
            self.rows[image] = {name: self._row(name, x) for name, x in taps.items()}

    def _row(self, name: str, x: Float[np.ndarray, "tokens d_in"]) -> Float[np.ndarray, "n d_in"]:
        if ends_merger(name) and name not in self.tokens:
            x = x.mean(axis=0, dtype=np.float64)[None]
        return np.asarray(x, np.float32)

    def snapshot(self) -> Snapshot:
        """For `restore`: the sums to their last bit."""
        rows, sums = self._rows(), self.statistics.arrays() if self.statistics else {}
        facts = {"plan": self.plan, "steps": self.steps}
        return Snapshot({**rows.arrays, **sums}, {**rows.facts, **facts})

    def restore(self, snapshot: Snapshot) -> None:
        """Begin where a snapshot of the same pass was taken."""
        self.steps = snapshot.facts["steps"]
        self._take(snapshot)
        if self.statistics:
            self.statistics.restore(snapshot.arrays)

    def share(self) -> None:
        """Take in the rows that other processes have of their images, and send them these.

        To be called by all processes; no more may be added then.
        """
        for theirs in collectives.all_gather_bytes(lambda: self._rows().to_bytes()):
            self._take(Snapshot.of_bytes(theirs))

    def features(self) -> SampleFeatures:
        """Of the images of all processes, in the files' order; there must be one.

        To be called by all processes, after `share`.
        """
        order = sorted(self.rows)
        taps = {
            name: TapRows.of([self.rows[image][name] for image in order]) for name in self.names
        }
        features = SampleFeatures(tuple(self.files[image] for image in order), taps)
        return self.statistics.finish(features, order) if self.statistics else features

    def _rows(self) -> Snapshot:
        """What there is but for the sums."""
        order = sorted(self.rows)
        arrays: dict[str, np.ndarray] = {"rows": np.array(order, int)}
        for name in self.names if order else ():
            parts = [self.rows[image][name] for image in order]
            arrays[f"{name}.x"] = np.concatenate(parts)
            arrays[f"{name}.counts"] = np.array([len(part) for part in parts])
        skipped = {str(image): reason for image, reason in self.skipped.items()}
        return Snapshot(arrays, {"skipped": skipped})

    def _take(self, snapshot: Snapshot) -> None:
        """Add what `_rows` gave."""
        arrays, skipped = snapshot.arrays, snapshot.facts["skipped"]
        self.skipped |= {int(image): reason for image, reason in skipped.items()}
        order = arrays["rows"].tolist()
        self.rows |= {image: {} for image in order}
        for name in self.names if order else ():
            ends = np.cumsum(arrays[f"{name}.counts"])[:-1]
            for image, rows in zip(order, np.split(arrays[f"{name}.x"], ends), strict=True):
                self.rows[image][name] = rows
