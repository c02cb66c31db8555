"""Arrays and facts of an unfinished stage of a run, to save or to send to other processes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import load, save


@dataclass(frozen=True)
class Snapshot:
    """Arrays by name, and JSON-serialisable facts."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The length of the JSON (8 bytes, little-endian), the JSON, the arrays as safetensors."""
        facts = json.dumps(dict(self.facts)).encode()
        # Not ascontiguousarray, which gives a scalar an axis.
        dense = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        return len(facts).to_bytes(8, "little") + facts + save(dense)

    @classmethod
    def of_bytes(cls, data: bytes) -> "Snapshot":
        """The inverse of `to_bytes`."""
        end = 8 + int.from_bytes(data[:8], "little")
        return cls(load(data[end:]), json.loads(data[8:end]))


@runtime_checkable
class Stage(Protocol):
    """Saves and loads the snapshots of a resumable part of a run."""

    def load(self) -> Snapshot | None:
        """The last snapshot that was saved; None to start from the beginning."""

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        """Call after every step from which the stage can be resumed."""

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        """Call after the last step."""


class NoSnapshots:
    """A `Stage` that saves nothing."""

    def load(self) -> Snapshot | None:
        return None

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        pass

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        pass
