"""Arrays and facts of an unfinished stage of a run, to save or to send to other processes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import load, save


class DamagedError(Exception):
    """A snapshot is not as it was written."""


@dataclass(frozen=True)
class Snapshot:
    """Arrays by name, and JSON-serialisable facts."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """A SHA-256 digest of the rest (32 bytes); the rest.

        The rest: the length of the JSON (8 bytes, little-endian), the JSON, the arrays as
        safetensors.
        """
        facts = json.dumps(dict(self.facts)).encode()
        # Not ascontiguousarray, which gives a scalar an axis.
        dense = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        rest = len(facts).to_bytes(8, "little") + facts + save(dense)
        return hashlib.sha256(rest).digest() + rest

    @classmethod
    def of_bytes(cls, data: bytes) -> "Snapshot":
        """The inverse of `to_bytes`.

        Raises:
            DamagedError: the digest differs.
        """
        digest, rest = data[:32], data[32:]
        if hashlib.sha256(rest).digest() != digest:
            raise DamagedError("its digest differs")
        end = 8 + int.from_bytes(rest[:8], "little")
        return cls(load(rest[end:]), json.loads(rest[8:end]))


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
