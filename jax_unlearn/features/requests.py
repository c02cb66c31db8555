"""Requests: which images to forget are of which request, where several are fitted together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Bool, Int

Combine = Literal["sum", "joint"]


class LedgerFacts(TypedDict):
    """Which ledger requests are of, and how they are combined, as in metrics.json.

    directory: its directory. digest: that of its last entry. combine, equal, rank_after: see
    `ledger solve`. image_means: whether it keeps the mean of every image. names: whether it is one
    of CLIP's names.
    """

    directory: str
    digest: str
    combine: Combine
    equal: bool
    rank_after: int | None
    image_means: bool
    names: bool


@dataclass(frozen=True)
class Requests:
    """The requests of a ledger, and the images to forget that each is about.

    Attributes:
        ids: their ids, sorted.
        concepts: what each is about, in words.
        train: [requests, images] which training images to forget are of which request.
        test: the same of the held-out images to forget.
        ledger: the ledger and how the requests are combined; None for a set of them that is not
            that of a run.
    """

    ids: tuple[str, ...]
    concepts: tuple[str, ...]
    train: Bool[np.ndarray, "requests n"]
    test: Bool[np.ndarray, "requests m"]
    ledger: LedgerFacts | None = None

    @cached_property
    def owner(self) -> Int[np.ndarray, " n"]:
        """For each training image, the first request that is about it."""
        return np.argmax(self.train, axis=0)

    @property
    def trained(self) -> list[int]:
        """The numbers of the requests that have a training image."""
        return np.flatnonzero(self.train.any(axis=1)).tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """The pairs (request, image) of both parts, as int32 [pairs, 2]."""
        return {
            f"requests.{part}": np.argwhere(of).astype(np.int32)
            for part, of in (("train", self.train), ("test", self.test))
        }


def membership(
    pairs: Int[np.ndarray, "pairs 2"], requests: int, images: int
) -> Bool[np.ndarray, "requests images"]:
    """The matrix whose pairs `Requests.arrays` has."""
    found = np.zeros((requests, images), bool)
    found[pairs[:, 0], pairs[:, 1]] = True
    return found
