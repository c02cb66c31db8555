"""Gram matrices of rows, summed on accelerators, from which copying all rows to the host would take
longer than running the tower.

For preserve rows, of which only count, sum and Gram matrix are needed (`statistics.Statistics`
without `by_image`). Each device sums its own rows; the host adds the devices' sums once, at the
end. Products are in float32: a Gram matrix is accurate to about 1e-7 of its largest eigenvalue, so
directions whose singular value is below about 3e-4 of the largest are not resolved. On a CPU rows
are therefore still summed by `statistics.statistics`, in float64.

Two measures keep the precision. Rows are multiplied a block at a time, and the blocks' sums are
pairs of float32 numbers (two-sum; Knuth, The Art of Computer Programming, volume 2, 4.2.2), so that
the error does not grow with the number of rows. Each device subtracts the mean of its first batch
from every row, so that a large common mean does not enter the products; the host adds it back in
float64.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Float64, Int

from jax_unlearn.features.statistics import Statistics
from jax_unlearn.runtime.mesh import AXES, over_data

# Pivots of the Gram matrix below this share of the largest are float32 rounding.
SHARE = float(np.finfo(np.float32).eps)
# Rows of one product, within which sums are plain float32. With all 8,192 rows of a batch in one
# product the relative error on an H200 was 7e-7 (benchmarks/results/accelerator.json).
BLOCK = 512


class Pair(NamedTuple):
    """Numbers as high + low, with about twice the digits of float32."""

    high: Float[Array, "*n"]
    low: Float[Array, "*n"]

    def plus(self, x: Float[Array, "*n"]) -> "Pair":
        near = self.high + x
        # The part of x that the sum contains; what is left of both operands was lost to rounding.
        added = near - self.high
        rest = self.low + ((self.high - (near - added)) + (x - added))
        high = near + rest
        return Pair(high, rest - (high - near))


class Sums(NamedTuple):
    """Each device's row count and sums so far, of its rows minus its centre."""

    number: Int[Array, " devices"]
    centre: Float[Array, "devices d_in"]
    total: Pair
    gram: Pair


def zeros(d_in: int, mesh: Mesh) -> Sums:
    """The sums of no rows, on every device."""
    devices, place = mesh.devices.size, over_data(mesh)

    def of(*shape: int) -> Array:
        return jnp.zeros((devices, *shape), device=place)

    total, gram = (Pair(of(*shape), of(*shape)) for shape in ((d_in,), (d_in, d_in)))
    return Sums(jnp.zeros(devices, jnp.int32, device=place), of(d_in), total, gram)


@partial(jax.jit, static_argnames="mesh", donate_argnames="sums")
def add(
    sums: Sums, rows: Float[Array, "rows d_in"], mask: Bool[Array, " rows"], *, mesh: Mesh
) -> Sums:
    """Add a batch of each device, concatenated in `rows`; rows outside the mask are ignored."""
    d_in = rows.shape[1]

    def of_device(sums: Sums, rows: Array, mask: Array) -> Sums:
        number = mask.sum(dtype=jnp.int32)
        mean = jnp.where(mask[:, None], rows, 0).sum(axis=0) / jnp.maximum(number, 1)
        # The first batch with rows sets the centre; before it all sums are zero.
        centre = jnp.where(sums.number == 0, mean, sums.centre[0])
        centred = jnp.where(mask[:, None], rows - centre, 0)
        total = sums.total.plus(centred.sum(axis=0)[None])

        def plus_block(gram: Pair, block: Array) -> tuple[Pair, None]:
            return gram.plus(jnp.matmul(block.T, block, precision="highest")[None]), None

        blocks = jnp.pad(centred, ((0, -len(centred) % BLOCK), (0, 0))).reshape(-1, BLOCK, d_in)
        gram, _ = jax.lax.scan(plus_block, sums.gram, blocks)
        return Sums(sums.number + number, centre[None], total, gram)

    each = PartitionSpec(AXES)
    return jax.shard_map(of_device, mesh=mesh, in_specs=each, out_specs=each)(sums, rows, mask)


class DeviceGram:
    """Statistics of the preserve rows at one tap, summed on the devices that hold the rows.

    Needs 8 D_in² bytes on each device, and while a batch is added another 4 D_in² bytes and a copy
    of its rows.
    """

    def __init__(self, d_in: int, mesh: Mesh) -> None:
        self.mesh = mesh
        self.sums = zeros(d_in, mesh)

    def add(self, rows: Float[Array, "rows d_in"], mask: Bool[Array, " rows"]) -> None:
        """Add a batch of each device.

        Args:
            rows: float32, the devices' batches concatenated and sharded by `mesh.over_data`, as
                `tower_pass.tap_rows` returns them.
            mask: which rows to add; the others are ignored. A device can count 2³¹ rows.
        """
        self.sums = add(self.sums, rows, mask, mesh=self.mesh)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The sums of each device, for `restore`."""
        leaves = jax.tree.leaves(self.sums)
        return {f"{prefix}.{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Restore the sums from `arrays`, on the same number of devices."""
        leaves, tree = jax.tree.flatten(self.sums)
        found = [arrays[f"{prefix}.{i}"] for i in range(len(leaves))]
        self.sums = jax.device_put(jax.tree.unflatten(tree, found), over_data(self.mesh))

    def finish(self) -> Statistics:
        """Statistics of all rows so far, always with a Gram matrix."""
        counts, centres = (np.asarray(x, np.float64) for x in (self.sums.number, self.sums.centre))
        totals = np.add(*(np.asarray(part, np.float64) for part in self.sums.total))
        # Σ (y + c)(y + c)ᵀ = Σ y yᵀ + Σ y cᵀ + c Σ yᵀ + n c cᵀ
        crossed = totals.T @ centres
        high, low = (over_devices(part) for part in self.sums.gram)
        gram = high + low
        centred = float(gram.diagonal().max())
        gram += crossed + crossed.T + (counts[:, None] * centres).T @ centres
        total = (totals + counts[:, None] * centres).sum(axis=0)
        # Pivots below the rounding of the products are meaningless; they may even be negative.
        noise = SHARE * max(centred, SHARE * float(gram.diagonal().max()))
        return Statistics(False, int(counts.sum()), total, None, gram, noise)


def over_devices(x: Float[Array, "devices d d"]) -> Float64[np.ndarray, "d d"]:
    """The sum over devices in float64 on the host, which copies one device's part at a time."""
    parts = (np.asarray(shard.data, np.float64)[0] for shard in x.addressable_shards)
    return np.asarray(sum(parts))
