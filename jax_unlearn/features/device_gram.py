"""Gram matrices of rows that are on accelerators, where bringing each row to the host takes longer
than the tower does.

For rows to keep, of which only number, sum and Gram matrix are needed (`statistics.Statistics`
without `by_image`). Each device adds up what passes over it, and nothing is communicated until the
host adds the devices, once. The products are float32's: a row's Gram matrix is right to about 1e-7
of its largest direction, so directions whose singular value is below about 3e-4 of the largest are
not resolved. That is why on a CPU rows still go through `statistics.statistics`, in float64.

Two losses of precision are avoided at little cost: rows are multiplied a block at a time and the
blocks' sums are pairs of float32 numbers (two-sum, Knuth, The Art of Computer Programming, volume
2, 4.2.2), so that the number of rows does no harm; and each device takes the mean of its first
batch from every row, so that a large common mean is no part of the products. The host puts it back
in float64.
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

# Pivots of the Gram matrix below this share of the largest are those products' rounding.
SHARE = float(np.finfo(np.float32).eps)
# Rows of one product, whose sums are float32's own. With all 8,192 of a batch in one product an
# H200 was off by 7e-7 of the matrix (benchmarks/results/accelerator.json).
BLOCK = 512


class Pair(NamedTuple):
    """Numbers as high + low, with about twice the digits of float32."""

    high: Float[Array, "*n"]
    low: Float[Array, "*n"]

    def plus(self, x: Float[Array, "*n"]) -> "Pair":
        near = self.high + x
        # What of x the sum has taken up; the rest of both is what rounding has lost.
        taken = near - self.high
        rest = self.low + ((self.high - (near - taken)) + (x - taken))
        high = near + rest
        return Pair(high, rest - (high - near))


class Sums(NamedTuple):
    """What each device has seen so far; its rows less its centre are what is summed."""

    number: Int[Array, " devices"]
    centre: Float[Array, "devices d_in"]
    total: Pair
    gram: Pair


def zeros(d_in: int, mesh: Mesh) -> Sums:
    """Of no rows."""
    devices, place = mesh.devices.size, over_data(mesh)

    def of(*shape: int) -> Array:
        return jnp.zeros((devices, *shape), device=place)

    total, gram = (Pair(of(*shape), of(*shape)) for shape in ((d_in,), (d_in, d_in)))
    return Sums(jnp.zeros(devices, jnp.int32, device=place), of(d_in), total, gram)


@partial(jax.jit, static_argnames="mesh", donate_argnames="sums")
def add(
    sums: Sums, rows: Float[Array, "rows d_in"], mask: Bool[Array, " rows"], *, mesh: Mesh
) -> Sums:
    """With a batch of each device, one after another in `rows`; rows outside the mask are none."""
    d_in = rows.shape[1]

    def of_device(sums: Sums, rows: Array, mask: Array) -> Sums:
        number = mask.sum(dtype=jnp.int32)
        mean = jnp.where(mask[:, None], rows, 0).sum(axis=0) / jnp.maximum(number, 1)
        # As long as there were no rows, the sums are zero whatever the centre is.
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
    """Statistics of the rows to keep at one tap, summed where the rows are.

    Memory of a device: 8 D_in² bytes, and while a batch is added 4 D_in² and its rows again.
    """

    def __init__(self, d_in: int, mesh: Mesh) -> None:
        self.mesh = mesh
        self.sums = zeros(d_in, mesh)

    def add(self, rows: Float[Array, "rows d_in"], mask: Bool[Array, " rows"]) -> None:
        """A batch of each device.

        Args:
            rows: float32, the devices' one after another, as `mesh.over_data` divides them; of as
                many as `taps.tap_rows` gives.
            mask: which of them count; what stands in the others does not matter. A device counts
                to 2³¹ rows.
        """
        self.sums = add(self.sums, rows, mask, mesh=self.mesh)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For `restore`: the sums of each device."""
        leaves = jax.tree.leaves(self.sums)
        return {f"{prefix}.{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}

    def restore(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        """Begin where `arrays` was called, on as many devices."""
        leaves, tree = jax.tree.flatten(self.sums)
        found = [arrays[f"{prefix}.{i}"] for i in range(len(leaves))]
        self.sums = jax.device_put(jax.tree.unflatten(tree, found), over_data(self.mesh))

    def finish(self) -> Statistics:
        """Of all rows so far, with a Gram matrix however few they are."""
        counts, centres = (np.asarray(x, np.float64) for x in (self.sums.number, self.sums.centre))
        totals = np.add(*(np.asarray(part, np.float64) for part in self.sums.total))
        # Σ (y + c)(y + c)ᵀ = Σ y yᵀ + Σ y cᵀ + c Σ yᵀ + n c cᵀ
        crossed = totals.T @ centres
        high, low = (over_devices(part) for part in self.sums.gram)
        gram = high + low
        centred = float(gram.diagonal().max())
        gram += crossed + crossed.T + (counts[:, None] * centres).T @ centres
        total = (totals + counts[:, None] * centres).sum(axis=0)
        # Below the products' own rounding a pivot may be negative, or by chance far too small.
        noise = SHARE * max(centred, SHARE * float(gram.diagonal().max()))
        return Statistics(False, int(counts.sum()), total, None, gram, noise)


def over_devices(x: Float[Array, "devices d d"]) -> Float64[np.ndarray, "d d"]:
    """Summed in float64 on the host, which holds one device's part at a time."""
    parts = (np.asarray(shard.data, np.float64)[0] for shard in x.addressable_shards)
    return np.asarray(sum(parts))
