"""PassState: rows and statistics collected so far in one pass of the tower."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jax_unlearn.data.batches import Batch
from jax_unlearn.data.images import ImageFile
from jax_unlearn.features.samples import SampleFeatures, TapRows, ends_merger
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.features.token_sample import sample_places
from jax_unlearn.runtime import collectives
from jax_unlearn.runtime.snapshots import Snapshot

TapArrays = dict[str, Float[np.ndarray, "_ d_in"]]
Grid = tuple[int, int]
# Ends the name of the sampled tokens of a tap among the rows of an image.
SAMPLED = ":sampled"


class PassState:
    """Collects the rows of images, one image at a time and in any order.

    Args:
        files: the images of the pass; images are identified by their index in it.
        names: the taps.
        tokens: taps of a Merger's last Linear at which every token is kept, rather than the mean of
            each image. At other taps every token is always kept.
        keep: files whose rows are kept; all by default.
        statistics: accumulates the statistics of all images, if given.
        sampled: files of which a few tokens are kept as well (`token_sample`), at the taps of the
            Mergers' last Linears.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        names: Sequence[str],
        tokens: Collection[str] = (),
        keep: Collection[ImageFile] | None = None,
        statistics: SideStatistics | None = None,
        sampled: Collection[ImageFile] = (),
    ) -> None:
        self.files, self.names, self.tokens = files, names, tokens
        self.keep, self.statistics, self.sampled = keep, statistics, sampled
        # Digest of the images of each step.
        self.plan = ""
        self.steps = 0
        self.rows: dict[int, TapArrays] = {}
        self.skipped: dict[int, str] = {}

    def planned(self, steps: Sequence[Sequence[Batch]]) -> None:
        """Record a digest of each step's images, which must be the same in a resumed pass."""
        listed = [[(item.index, item.patches) for b in step for item in b.items] for step in steps]
        self.plan = hashlib.sha256(repr(listed).encode()).hexdigest()

    def skip(self, reasons: Mapping[int, str]) -> None:
        """Record images that cannot be read, and why."""
        self.skipped |= reasons

    def step_done(self) -> None:
        """Count a step whose images have all been added."""
        self.steps += 1

    def needs_tokens(self, name: str) -> bool:
        """Whether `add` needs all tokens at a tap, rather than their mean."""
        kept = not ends_merger(name) or name in self.tokens
        summed = bool(self.statistics and self.statistics.needs_tokens(name))
        return kept or summed or bool(self.sampled)

    def add(
        self, image: int, taps: Mapping[str, Float[np.ndarray, "tokens d_in"]], grid: Grid
    ) -> None:
        """Add one image.

        Args:
            image: its index.
            taps: its tokens at each tap, or their mean where `needs_tokens` is false.
            grid: its rows and columns of tokens.
        """
        if self.statistics:
            self.statistics.add(image, taps)
        file = self.files[image]
        if self.keep is not None and file not in self.keep:
            return
        self.rows[image] = {name: self._row(name, x) for name, x in taps.items()}
        if file in self.sampled:
            places = sample_places(*grid)
            self.rows[image] |= {
                name: taps[name.removesuffix(SAMPLED)][places].astype(np.float32)
                for name in self._sampled_names()
            }

    def _row(self, name: str, x: Float[np.ndarray, "tokens d_in"]) -> Float[np.ndarray, "n d_in"]:
        if ends_merger(name) and name not in self.tokens:
            x = x.mean(axis=0, dtype=np.float64)[None]
        return np.asarray(x, np.float32)

    def snapshot(self) -> Snapshot:
        """A snapshot for `restore`, with the exact sums."""
        rows, sums = self._rows(), self.statistics.arrays() if self.statistics else {}
        facts = {"plan": self.plan, "steps": self.steps}
        return Snapshot({**rows.arrays, **sums}, {**rows.facts, **facts})

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same pass."""
        self.steps = snapshot.facts["steps"]
        self._take(snapshot)
        if self.statistics:
            self.statistics.restore(snapshot.arrays)

    def share(self) -> None:
        """Exchange rows with the other processes, so that each has those of all images.

        Must be called by all processes, after the last `add`.
        """
        for theirs in collectives.all_gather_bytes(lambda: self._rows().to_bytes()):
            self._take(Snapshot.of_bytes(theirs))

    def features(self) -> SampleFeatures:
        """Features of the images of all processes, in the order of the files; at least one.

        Must be called by all processes, after `share`.
        """
        order = sorted(self.rows)
        taps = {
            name: TapRows.of([self.rows[image][name] for image in order]) for name in self.names
        }
        sampled = {name: self._of_some(name, order) for name in self._sampled_names()}
        tokens = {name.removesuffix(SAMPLED): tap for name, tap in sampled.items() if len(tap.x)}
        files = tuple(self.files[image] for image in order)
        features = SampleFeatures(files, taps, tokens=tokens)
        return self.statistics.finish(features, order) if self.statistics else features

    def _rows(self) -> Snapshot:
        """The rows and the skipped files, without the sums."""
        order = sorted(self.rows)
        arrays: dict[str, np.ndarray] = {"rows": np.array(order, int)}
        for name in (*self.names, *self._sampled_names()) if order else ():
            parts = [self.rows[image].get(name) for image in order]
            arrays[f"{name}.counts"] = np.array([0 if p is None else len(p) for p in parts])
            if found := [part for part in parts if part is not None]:
                arrays[f"{name}.x"] = np.concatenate(found)
        skipped = {str(image): reason for image, reason in self.skipped.items()}
        return Snapshot(arrays, {"skipped": skipped})

    def _take(self, snapshot: Snapshot) -> None:
        """Add rows and skipped files from `_rows`."""
        arrays, skipped = snapshot.arrays, snapshot.facts["skipped"]
        self.skipped |= {int(image): reason for image, reason in skipped.items()}
        order = arrays["rows"].tolist()
        self.rows |= {image: {} for image in order}
        for name in (*self.names, *self._sampled_names()):
            if f"{name}.x" not in arrays:
                continue
            ends = np.cumsum(arrays[f"{name}.counts"])[:-1]
            for image, rows in zip(order, np.split(arrays[f"{name}.x"], ends), strict=True):
                if len(rows):
                    self.rows[image][name] = rows

    def _sampled_names(self) -> list[str]:
        """Names of the sampled tokens among the rows of an image."""
        return [name + SAMPLED for name in self.names if ends_merger(name) and self.sampled]

    def _of_some(self, name: str, order: Sequence[int]) -> TapRows:
        """Rows that only some images have; `image` counts all images in `order`."""
        found = [(i, self.rows[j][name]) for i, j in enumerate(order) if name in self.rows[j]]
        if not found:
            return TapRows(np.zeros((0, 0), np.float32), np.zeros(0, int))
        counts = [len(rows) for _, rows in found]
        images = np.repeat([i for i, _ in found], counts)
        return TapRows(np.concatenate([rows for _, rows in found]), images)
