"""What the loss needs of the rows at a tap, gathered while images stream by.

Rows enter the loss only through norms of their products, so Gram matrices do instead of rows, and
they add up over batches, devices and hosts (source: DESIGN.md, section 6). Features are float32 and
their products are summed in float64, where the square that a Gram matrix makes of the condition
number does no more harm than float32's own rounding. The loss is never taken from a Gram matrix but
from a factor S of it, SᵀS = G, in place of the rows: ‖X Δᵀ‖ = ‖S Δᵀ‖, and no term cancels.

The target of a row to forget depends on its image, and so these rows need more: of every image, an
orthogonal change of its rows leaves one with the sum of them, one with what correlates with their
outputs' norms (which `matched` asks for), and others that every target treats alike. The first two
are kept as they are, whatever the target will be; of the others the Gram matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Int

from jax_unlearn.features.gram import PIVOT, factor, gram, lower_half, symmetric

FIELDS = ("x", "image", "ones", "norms")

Output = Callable[[Float[np.ndarray, "n d_in"]], Float[np.ndarray, "n e"]]


@dataclass(frozen=True)
class Rows:
    """Rows of images after an orthogonal change of each image's rows; as they were, without one.

    x: [m, D_in]; image: which image each row is of; ones and norms: the same change applied to
    a column of ones and to the column of the original outputs' norms ‖W x + b‖.
    """

    x: Float[np.ndarray, "m d_in"]
    image: Int[np.ndarray, " m"]
    ones: Float[np.ndarray, " m"]
    norms: Float[np.ndarray, " m"]

    def joined(self, *others: "Rows") -> "Rows":
        columns = ([getattr(rows, name) for rows in (self, *others)] for name in FIELDS)
        return Rows(*(np.concatenate(parts) for parts in columns))

    def two_rows_per_image(self) -> "Rows":
        """The rows of each image that its target can tell from others: at most two.

        The rest of its rows are orthogonal to both columns, and only their Gram matrix is needed.
        """
        starts = np.flatnonzero(np.diff(self.image, prepend=-1))
        counts = np.diff(starts, append=len(self.image))
        roots = np.sqrt(counts)
        sums = np.add.reduceat(self.x, starts, axis=0, dtype=np.float64)
        means = np.add.reduceat(self.norms, starts) / counts
        rest = self.norms - np.repeat(means, counts)
        size = np.sqrt(np.add.reduceat(rest**2, starts))
        varied = size > np.finfo(np.float64).eps * roots * means
        unit = rest / np.repeat(np.where(varied, size, 1), counts)
        along = np.add.reduceat(self.x * unit[:, None], starts, axis=0)
        image = self.image[starts]
        first = Rows(sums / roots[:, None], image, roots, roots * means)
        zeros = np.zeros(varied.sum())
        return first.joined(Rows(along[varied], image[varied], zeros, size[varied]))


@dataclass(frozen=True)
class Statistics:
    """Rows of one tap, as they are while they are few; else their Gram matrix.

    by_image: whether a target may depend on the image, as that of rows to forget. count: how many
    rows; total: [D_in] their sum. rows: all of them without a Gram matrix; with one, what is kept
    of each image (`Rows.two_rows_per_image`), None unless `by_image`. gram: [D_in, D_in] XᵀX of all
    rows. noise: its pivots up to this may be rounding of the products that it was summed from.
    """

    by_image: bool
    count: int
    total: Float64[np.ndarray, " d_in"]
    rows: Rows | None
    gram: Float64[np.ndarray, "d_in d_in"] | None
    noise: float = 0.0

    @property
    def mean(self) -> Float64[np.ndarray, " d_in"]:
        return self.total / self.count

    def full_gram(self) -> Float64[np.ndarray, "d_in d_in"]:
        """XᵀX of all rows."""
        if self.gram is not None:
            return self.gram
        assert self.rows is not None
        return gram(self.rows.x)

    def numbered(self, places: Int[np.ndarray, " images"]) -> "Statistics":
        """With each image to forget called by its place in a sorted list of them."""
        if self.rows is None or not self.by_image:
            return self
        return replace(
            self, rows=replace(self.rows, image=np.searchsorted(places, self.rows.image))
        )

    def equivalent_rows(self) -> Rows:
        """Rows with the same loss: as they are, or at most D_in and two an image."""
        if self.gram is None:
            assert self.rows is not None
            return self.rows
        if self.rows is None:
            return _alike(factor(self.gram, self.noise))
        rest = self.gram - self.rows.x.T @ self.rows.x
        noise = max(self.noise, PIVOT * float(self.gram.diagonal().max()))
        return self.rows.joined(_alike(factor(rest, noise)))

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For a file; of the symmetric matrix the lower half."""
        numbers = {"by_image": self.by_image, "count": self.count, "noise": self.noise}
        arrays = {name: np.array(value) for name, value in numbers.items()}
        arrays["total"] = self.total
        if self.rows is not None:
            arrays |= {name: getattr(self.rows, name) for name in FIELDS}
        if self.gram is not None:
            arrays["gram"] = lower_half(self.gram)
        return {f"{prefix}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> "Statistics":
        """What `arrays` gave."""
        total, packed = arrays[f"{prefix}.total"], arrays.get(f"{prefix}.gram")
        rows, whole = None, None
        if f"{prefix}.x" in arrays:
            rows = Rows(*(arrays[f"{prefix}.{name}"] for name in FIELDS))
        if packed is not None:
            whole = symmetric(packed, len(total))
        names = ("by_image", "count", "noise")
        by_image, count, noise = (arrays[f"{prefix}.{name}"].item() for name in names)
        return cls(by_image, count, total, rows, whole, noise)


def merge(one: Statistics, other: Statistics) -> Statistics:
    """Statistics of the union; no image may be in both."""
    both = joined(one, other)
    if one.gram is None and other.gram is None and both.count <= len(both.total):
        return both
    one, other = summed(one), summed(other)
    return replace(joined(one, other), gram=one.full_gram() + other.full_gram())


def joined(one: Statistics, other: Statistics) -> Statistics:
    """Those of the union but for the Gram matrix; either both have one or none."""
    return replace(
        one,
        count=one.count + other.count,
        total=one.total + other.total,
        rows=one.rows.joined(other.rows) if one.rows and other.rows else None,
        noise=one.noise + other.noise,
    )


def summed(statistics: Statistics) -> Statistics:
    """With a Gram matrix in place of the rows, however few they are."""
    if statistics.gram is not None:
        return statistics
    rows = statistics.rows
    assert rows is not None
    kept = rows.two_rows_per_image() if statistics.by_image else None
    return replace(statistics, rows=kept, gram=gram(rows.x))


def statistics(
    x: Float[np.ndarray, "n d_in"], image: Int[np.ndarray, " n"], output: Output | None
) -> Statistics:
    """Of rows in memory, those of an image side by side; `output` as for `StreamingStatistics`."""
    norms = np.zeros(len(x))
    if output is not None:
        norms = np.linalg.norm(output(x), axis=1).astype(np.float64)
    rows, total = Rows(x, image, np.ones(len(x)), norms), x.sum(axis=0, dtype=np.float64)
    few = Statistics(output is not None, len(x), total, rows, None)
    return few if len(x) <= x.shape[1] else summed(few)


def _alike(x: Float64[np.ndarray, "m d_in"]) -> Rows:
    """Rows that no target tells apart."""
    zeros = np.zeros(len(x))
    return Rows(x, np.zeros(len(x), int), zeros, zeros)
