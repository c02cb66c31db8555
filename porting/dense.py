"""Any change of a few Linears as an adapter of full rank, to run a tower with it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from porting.adaptable_linears import locate_in, open_weights
from porting.merge import merged_tensors

Array = Float32[np.ndarray, "..."]


def dense_adapter(change: Callable[[str], Array | None], linears: Sequence[str]) -> LoraAdapter:
    """An adapter whose changes are any matrices: b is the change, and a the identity.

    Args:
        change: the change by the name of a Linear and `.weight` [E, D_in] or `.bias` [E]; None for
            none of a bias.
        linears: names of the Linears.
    """
    pairs, identity = {}, np.eye(0, dtype=np.float32)
    for name in linears:
        weight = change(f"{name}.weight")
        assert weight is not None, name
        if len(identity) != weight.shape[1]:
            identity = np.eye(weight.shape[1], dtype=np.float32)
        pairs[name] = LoraPair(identity, weight, change(f"{name}.bias"))
    # Their quotient is the scale.
    return LoraAdapter(pairs, alpha=1.0, rank=1)


def merged_by_linear(adapter: LoraAdapter, base: Path) -> dict[str, tuple[Array, Array]]:
    """(original, merged) in float32 of each tensor that a merge changes, after its rounding.

    The names are those of the Linears with `.weight` [E, D_in] or `.bias` [E].

    Raises:
        CheckpointError: the adapter does not fit the checkpoint `base`.
    """
    with open_weights(base) as checkpoint:
        place = locate_in(checkpoint)
        names = {key: ".".join(name) for name, key in place.keys(adapter).items()}
        found = {}
        for key, original, merged in merged_tensors(adapter, checkpoint):
            pair = original.astype(np.float32), merged.astype(np.float32)
            found[names[key]] = (pair[0].T, pair[1].T) if place.is_transposed else pair
        return found


def merged_change(adapter: LoraAdapter, base: Path) -> LoraAdapter:
    """What a merge of an adapter changes, after the rounding of the files' data type."""
    tensors = merged_by_linear(adapter, base)

    def change(name: str) -> Array | None:
        return tensors[name][1] - tensors[name][0] if name in tensors else None

    return dense_adapter(change, list(adapter.pairs))
