"""Requests of a ledger: which are active, and which of their images are forgotten and kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_unlearn.runs.ledger.chain import Entry, append, new_entry, read_chain
from jax_unlearn.runs.ledger.store import (
    StoredImages,
    StoredTower,
    joined,
    load_images,
    load_tower,
)
from jax_unlearn.runs.settings.config import RunConfig, config_of
from jax_unlearn.runtime.digests import of_text
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.file_lock import locked

# Characters of a request's id: 48 bits of the digest of its content.
ID = 12


@dataclass(frozen=True)
class Request:
    """What is asked to be forgotten; the id depends on the concept and the images alone."""

    concept: str
    images: StoredImages

    @property
    def id(self) -> str:
        return of_text(json.dumps([self.concept, self.images.content()]))[:ID]


@dataclass(frozen=True)
class Ledger:
    """A ledger as its file says, with what the store holds for all requests.

    Attributes:
        directory: the ledger.
        entries: the chain.
        config: the settings of its runs.
        tower: the Linears.
        preserve: the images to keep unless a request is about them.
    """

    directory: Path
    entries: Sequence[Entry]
    config: RunConfig
    tower: StoredTower
    preserve: StoredImages

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `ledger init` recorded."""
        return self.entries[0].what

    def active(self) -> list[str]:
        """Ids of the requests that were added and not withdrawn, in the order of their ids."""
        return active(self.entries)

    def check_contents(self, contents: str) -> None:
        """Check that a model is the one that the ledger began with, by the digest of its contents.

        Raises:
            UserError: it is not.
        """
        if contents != self.facts["contents"]:
            raise UserError(
                f"{self.config.samples.checkpoint}: has changed since the ledger began; restore "
                "it, or begin a new ledger"
            )

    def added(self, id: str) -> Entry | None:
        """The last entry that added a request; None if it was never added."""
        return next((e for e in reversed(self.entries) if (e.kind, e.id) == ("add", id)), None)

    def requests(self) -> list[Request]:
        """The active requests in the order of their ids.

        Raises:
            UserError: a file of the store is missing or has changed, or a request's images are not
                those that its id stands for.
        """
        return [self.request(id) for id in self.active()]

    def request(self, id: str) -> Request:
        """A request that was added; raises as `requests`."""
        entry = self.added(id)
        assert entry is not None
        request = Request(entry.what["concept"], self.images_of(entry))
        if request.id != id:
            raise UserError(
                f"{self.directory}: request {id} is about other images than when it was added; "
                "restore the ledger from a copy"
            )
        return request

    def images_of(self, entry: Entry) -> StoredImages:
        """The images of a request: those of a file of the store, or of classes to preserve."""
        if digest := entry.what["images"]:
            return load_images(self.directory, digest)
        return self.preserve.of_classes(entry.what["classes"])


def open_ledger(directory: Path) -> Ledger:
    """Read a ledger.

    Raises:
        UserError: it is none, or damaged; names the file.
    """
    entries = read_chain(directory)
    facts = entries[0].what
    tower = load_tower(directory, facts["tower"])
    preserve = load_images(directory, facts["preserve"])
    try:
        config = config_of(facts["settings"])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{directory}: its settings are not those of a ledger ({error}); restore it from a copy"
        ) from error
    return Ledger(directory, entries, config, tower, preserve)


def active(entries: Sequence[Entry]) -> list[str]:
    """Ids of the requests that are added and not withdrawn by these entries, sorted."""
    last = {entry.id: entry.kind for entry in entries if entry.kind != "init"}
    return sorted(id for id, kind in last.items() if kind == "add")


def recorded(directory: Path, request: Request, what: Mapping[str, Any]) -> str:
    """Append a request to the chain, with the entries that it has now; returns its id.

    Raises:
        UserError: the request is active already.
    """
    with locked(directory):
        entries = read_chain(directory)
        if request.id in active(entries):
            raise UserError(
                f"{directory}: request {request.id} is active already, with the same concept and "
                "images"
            )
        what = {"concept": request.concept, **what}
        append(directory, new_entry("add", request.id, what, entries), entries)
    return request.id


@dataclass(frozen=True)
class Divided:
    """All images of a ledger, divided by its active requests.

    Attributes:
        requests: the requests in the order of their ids.
        forget: the images of all requests, each once.
        preserve: the images to preserve that are of no request.
    """

    requests: Sequence[Request]
    forget: StoredImages
    preserve: StoredImages

    def of_request(self, number: int) -> Bool[np.ndarray, " n"]:
        """The images of a request among those to forget, also those that another one owns."""
        own = np.zeros(len(self.forget), bool)
        own[[self._place[key] for key in self.requests[number].images.keys]] = True
        return own

    @cached_property
    def _place(self) -> dict[bytes, int]:
        return {key: i for i, key in enumerate(self.forget.keys)}


def divide(
    requests: Sequence[Request],
    preserve: StoredImages,
    who: str = "the active requests",
    cure: str = "withdraw one with `ledger undo`",
) -> Divided:
    """Divide a ledger's images by the requests, in an order that depends on their content alone.

    An image of several requests has the class, and the part in training or evaluation, that it has
    in the first of them by id. One that was already preserved keeps its row.

    Args:
        requests: the requests.
        preserve: the images to keep unless a request is about them.
        who: what to call the requests in an error.
        cure: what can be done about it.

    Raises:
        UserError: there is no request, or training or evaluation is left without images on a side.
    """
    if not requests:
        raise UserError("no request is active, so there is nothing to forget; `ledger add` one")
    requests = sorted(requests, key=lambda one: one.id)
    forget = joined([one.images for one in requests])
    gone = {*forget.keys}
    kept = preserve.take([i for i, key in enumerate(preserve.keys) if key not in gone])
    for what, side in (("forget", forget), ("preserve", kept)):
        for when, some in (("train with", ~side.held_out), ("evaluate with", side.held_out)):
            if not some.any():
                raise UserError(
                    f"{who} leave no image to {what} to {when}; {cure}, or begin a ledger with "
                    "more classes to preserve"
                )
    return Divided(requests, forget, kept)
