"""Arrays and facts of an unfinished stage of a run: to save them, or to send them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import load, save


@dataclass(frozen=True)
class Snapshot:
    """Arrays by name, and facts that JSON can hold."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        facts = json.dumps(dict(self.facts)).encode()
        # Not ascontiguousarray, which gives a number an axis.
        dense = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        return len(facts).to_bytes(8, "little") + facts + save(dense)

    @classmethod
    def of_bytes(cls, data: bytes) -> "Snapshot":
        """What `to_bytes` gave."""
        end = 8 + int.from_bytes(data[:8], "little")
        return cls(load(data[end:]), json.loads(data[8:end]))


@runtime_checkable
class Stage(Protocol):
    """Where a resumable part of a run keeps its snapshots."""

    def load(self) -> Snapshot | None:
        """The last snapshot that was saved; None begins from the start."""

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        """To be called after every step that could be the last before a stop."""

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        """To be called after the last step."""


class NoSnapshots:
    """A stage that keeps nothing."""

    def load(self) -> Snapshot | None:
        return None

    def step(self, snapshot: Callable[[], Snapshot]) -> None:
        pass

    def done(self, snapshot: Callable[[], Snapshot]) -> None:
        pass
