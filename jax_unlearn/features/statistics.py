"""Statistics of the rows at a tap: all that the loss needs of them, accumulated over batches.

Rows enter the loss only through norms of their products, so a Gram matrix can replace them, and
Gram matrices add up over batches, devices and hosts (source: DESIGN.md, section 6). Features are
float32 and their products are summed in float64, so that squaring the condition number in a Gram
matrix does no more harm than the rounding of float32. The loss is not computed from a Gram matrix G
but from a factor S with SᵀS = G in place of the rows: ‖X Δᵀ‖ = ‖S Δᵀ‖, and no term cancels.

The target of a forget row depends on its image, so forget rows need more. An orthogonal change of
the rows of an image leaves one row proportional to their sum, one with what correlates with the
norms of their outputs (needed by `matched`), and others whose target is the same for every image.
The first two are kept for each image, for every target; the others enter the Gram matrix only.
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
    """Rows of images, possibly after an orthogonal change of each image's rows.

    x: [m, D_in]; image: index of the image of each row; ones and norms: the same orthogonal change
    applied to a column of ones and to the norms of the original outputs ‖W x + b‖.
    """

    x: Float[np.ndarray, "m d_in"]
    image: Int[np.ndarray, " m"]
    ones: Float[np.ndarray, " m"]
    norms: Float[np.ndarray, " m"]

    def concatenated(self, *others: "Rows") -> "Rows":
        columns = ([getattr(rows, name) for rows in (self, *others)] for name in FIELDS)
        return Rows(*(np.concatenate(parts) for parts in columns))

    def two_rows_per_image(self) -> "Rows":
        """At most two rows per image: those on which its target can depend.

        The other rows, after the orthogonal change, have 0 in `ones` and `norms`, and only their
        Gram matrix is needed.
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
        return first.concatenated(Rows(along[varied], image[varied], zeros, size[varied]))


@dataclass(frozen=True)
class Statistics:
    """Statistics of the rows of one tap: the rows themselves while few, else their Gram matrix.

    Attributes:
        by_image: whether the target depends on the image, as that of forget rows does.
        count: number of rows.
        total: [D_in] sum of the rows.
        rows: all rows, without a Gram matrix; with one, those of `Rows.two_rows_per_image` if
            `by_image`, else None.
        gram: [D_in, D_in] XᵀX of all rows, or None.
        noise: pivots of `gram` up to this may be rounding errors of the products in it.
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
        """XᵀX of all rows, [D_in, D_in]."""
        if self.gram is not None:
            return self.gram
        assert self.rows is not None
        return gram(self.rows.x)

    def gram_with_ones(self) -> Float64[np.ndarray, "wide wide"]:
        """The Gram matrix of [X 1], [D_in + 1, D_in + 1]."""
        total = self.total[:, None]
        corner = np.full((1, 1), float(self.count))
        return np.block([[self.full_gram(), total], [total.T, corner]])

    def numbered(self, places: Int[np.ndarray, " images"]) -> "Statistics":
        """Renumber the images: each becomes its position in the sorted `places`."""
        if self.rows is None or not self.by_image:
            return self
        return replace(
            self, rows=replace(self.rows, image=np.searchsorted(places, self.rows.image))
        )

    def equivalent_rows(self) -> Rows:
        """Rows with the same loss: all of them, or at most D_in plus two per image."""
        if self.gram is None:
            assert self.rows is not None
            return self.rows
        if self.rows is None:
            return _image_independent(factor(self.gram, self.noise))
        rest = self.gram - self.rows.x.T @ self.rows.x
        noise = max(self.noise, PIVOT * float(self.gram.diagonal().max()))
        return self.rows.concatenated(_image_independent(factor(rest, noise)))

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays for a file, by name; of the Gram matrix only the lower triangle."""
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
        """The inverse of `arrays`."""
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
    both = concatenated(one, other)
    if one.gram is None and other.gram is None and both.count <= len(both.total):
        return both
    one, other = as_gram(one), as_gram(other)
    return replace(concatenated(one, other), gram=one.full_gram() + other.full_gram())


def concatenated(one: Statistics, other: Statistics) -> Statistics:
    """Statistics of the union, except for `gram`, which stays that of `one`.

    Both must have a Gram matrix, or neither.
    """
    return replace(
        one,
        count=one.count + other.count,
        total=one.total + other.total,
        rows=one.rows.concatenated(other.rows) if one.rows and other.rows else None,
        noise=one.noise + other.noise,
    )


def as_gram(statistics: Statistics) -> Statistics:
    """The same statistics with a Gram matrix in place of the rows."""
    if statistics.gram is not None:
        return statistics
    rows = statistics.rows
    assert rows is not None
    kept = rows.two_rows_per_image() if statistics.by_image else None
    return replace(statistics, rows=kept, gram=gram(rows.x))


def statistics(
    x: Float[np.ndarray, "n d_in"], image: Int[np.ndarray, " n"], output: Output | None
) -> Statistics:
    """Statistics of rows in memory; the rows of each image must be contiguous.

    Args:
        x: the rows.
        image: index of the image of each row.
        output: see `StreamingStatistics`.
    """
    norms = np.zeros(len(x))
    if output is not None:
        norms = np.linalg.norm(output(x), axis=1).astype(np.float64)
    rows, total = Rows(x, image, np.ones(len(x)), norms), x.sum(axis=0, dtype=np.float64)
    few = Statistics(output is not None, len(x), total, rows, None)
    return few if len(x) <= x.shape[1] else as_gram(few)


def _image_independent(x: Float64[np.ndarray, "m d_in"]) -> Rows:
    """Rows whose target does not depend on the image."""
    zeros = np.zeros(len(x))
    return Rows(x, np.zeros(len(x), int), zeros, zeros)
