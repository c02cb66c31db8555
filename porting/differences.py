"""Which tensors of two checkpoints differ."""

from dataclasses import dataclass, field

import numpy as np

from porting.checkpoint import Checkpoint


@dataclass
class Differences:
    """Keys of the tensors of a result that are not those of its base.

    changed: other values or another shape. missing, extra: in one of them only. unread: of a dtype
    that cannot be read, such as quantised ones. cast: how many have another dtype; their values are
    compared in the result's.
    """

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    cast: int = 0


def differences(base: Checkpoint, result: Checkpoint) -> Differences:
    """Compare every tensor of two open checkpoints; one of each is in memory at a time."""
    found = Differences(extra=sorted(set(result) - set(base)))
    for key in sorted(base):
        if key not in result:
            found.missing.append(key)
        elif base.dtype_faults(key) or result.dtype_faults(key):
            found.unread.append(key)
        elif base.shape(key) != result.shape(key):
            found.changed.append(key)
        else:
            ours, theirs = base.read(key), result.read(key)
            found.cast += ours.dtype != theirs.dtype
            with np.errstate(over="ignore"):
                ours = ours.astype(theirs.dtype)
            # By bytes, so that NaN equals NaN.
            if ours.tobytes() != theirs.tobytes():
                found.changed.append(key)
    return found
