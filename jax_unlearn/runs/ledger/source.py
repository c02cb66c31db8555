"""Source: the images of a ledger, without an image or a tower."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_unlearn.data.dataset import Dataset
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.requests import LedgerFacts, Requests
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.stand_in import Counterpart, StandIn
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.objective.counterparts import Embedded
from jax_unlearn.objective.projectors import projectors_of
from jax_unlearn.objective.stand_in import stand_in_of
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fingerprint import fingerprint
from jax_unlearn.runs.ledger.requests import Divided, Ledger, divide
from jax_unlearn.runs.ledger.store import StoredImages, StoredTower
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.source import (
    StageOf,
    sample_counts,
    side_with_statistics,
    split_seed,
    unsaved,
    with_statistics,
)
from jax_unlearn.runtime.resume import Facts


class LedgerSource:
    """The images of a ledger's active requests, and the images to preserve that are of none.

    Its run has the features in its own statistics.safetensors, so that later commands need neither
    the images nor the ledger.

    Args:
        ledger: the ledger.
        config: the settings.
        facts: how the requests are combined; not needed where nothing is fitted.

    Raises:
        UserError: a file of the store is missing, or the requests leave a side without images.
    """

    mesh = None

    def __init__(self, ledger: Ledger, config: RunConfig, facts: LedgerFacts | None = None) -> None:
        self.ledger, self.facts = ledger, facts
        self.divided = divide(ledger.requests(), ledger.preserve)
        config = config.replace(statistics=config.execution.out, save_statistics="yes")
        self.config = with_names(config, self.divided)
        self.dataset = dataset_of(self.divided)

    @property
    def linears(self) -> Sequence[FrozenLinear]:
        return self.ledger.tower.linears

    def stored_linears(self) -> dict[str, str]:
        """Of the checkpoint that the ledger began with, which may be gone."""
        return dict(self.ledger.facts["linears"])

    def fingerprint(self) -> Facts:
        contents = [self.ledger.facts["contents"].encode()]
        return fingerprint(self.config, self.dataset, contents, 1)

    @cached_property
    def extracted(self) -> Extracted:
        found = extracted_of(self.divided, self.ledger.tower, self.config, self.facts)
        return replace(found, counts=sample_counts(self.dataset, ()))

    def extract(self, stage_of: StageOf = unsaved) -> Extracted:
        return self.extracted


def with_names(config: RunConfig, divided: Divided) -> RunConfig:
    """The settings with the names of a ledger of names."""
    if not divided.preserve.texts:
        return config
    sides = (divided.forget, divided.preserve)
    forget, preserve = (tuple(sorted({*side.labels})) for side in sides)
    return config.replace(forget_text=forget, preserve_text=preserve)


def dataset_of(divided: Divided) -> Dataset[Any]:
    """The images in the groups of a run."""
    sides = (divided.forget, divided.preserve)
    forget, preserve, forget_test, preserve_test = (
        part(side, out).files() for out in (False, True) for side in sides
    )
    return Dataset(forget, preserve, forget_test, preserve_test)


def part(images: StoredImages, held_out: bool) -> StoredImages:
    """The images to train with, or those that are held out."""
    return images.take(np.flatnonzero(images.held_out == held_out))


def requests_of(divided: Divided, facts: LedgerFacts | None = None) -> Requests:
    """Which images to forget are of which request, in the order of a run's features."""
    every = range(len(divided.requests))
    own, held_out = np.stack([divided.of_request(n) for n in every]), divided.forget.held_out
    ids, concepts = zip(*((one.id, one.concept) for one in divided.requests), strict=True)
    return Requests(ids, concepts, own[:, ~held_out], own[:, held_out], facts)


def extracted_of(
    divided: Divided, tower: StoredTower, config: RunConfig, facts: LedgerFacts | None = None
) -> Extracted:
    """The features of all requests together, without counts of samples."""
    linears, requests = tower.linears, requests_of(divided, facts)
    train, test = (
        Sides(part(divided.forget, out).features(), part(divided.preserve, out).features())
        for out in (False, True)
    )
    # Names are not compared with a class.
    pairs: tuple[Counterpart, ...] = ()
    if not divided.forget.texts:
        pairs = pairs_of(requests, Embedded.of(projectors_of(linears), train))
    stand_ins: tuple[StandIn, ...] = ()
    if config.objective.target == STAND_IN:
        stand_ins = tuple(
            of_means(requests, train, linears, number, pair)
            for number, pair in zip(requests.trained, pairs, strict=True)
        )
    return Extracted(
        linears=tuple(linears),
        train=with_statistics(train, linears, split_seed(config)),
        test=test,
        empty=tower.blank,
        counts={},
        counterparts=pairs,
        stand_ins=stand_ins,
        requests=requests,
    )


def pairs_of(
    requests: Requests, embedded: Embedded, alone: bool = False
) -> tuple[Counterpart, ...]:
    """The counterpart of each request that has a training image.

    Args:
        requests: the requests.
        embedded: their training images and those to keep.
        alone: the counterpart that each would have if it were the only request.
    """
    masks = {number: requests.train[number] for number in requests.trained}
    unshared = np.sum([*masks.values()], axis=0) == 1
    found = []
    for number, own in masks.items():
        # A teal triangle, for the requests teal and triangle, has no teal circle to compare with.
        if (own & unshared).any():
            own = own & unshared
        classes = [*dict.fromkeys(embedded.labels[own].tolist())]
        concept = requests.concepts[number]
        among = embedded
        if alone:
            among = embedded.before(np.unique(embedded.labels[masks[number]]))
        found.append(among.nearest(concept, classes, own))
    return tuple(found)


def replaced(
    divided: Divided, linears: Sequence[FrozenLinear]
) -> dict[str, tuple[Counterpart, Counterpart]]:
    """For each request by its id, the class it is moved onto, and the one that it would be if no
    other were forgotten."""
    train = Sides(part(divided.forget, False).features(), part(divided.preserve, False).features())
    embedded = Embedded.of(projectors_of(linears), train)
    requests = requests_of(divided)
    both = [pairs_of(requests, embedded, alone) for alone in (False, True)]
    ids = [requests.ids[number] for number in requests.trained]
    return dict(zip(ids, zip(*both, strict=True), strict=True))


def of_means(
    requests: Requests,
    train: Sides,
    linears: Sequence[FrozenLinear],
    number: int,
    pair: Counterpart,
) -> StandIn:
    """The images that take the place of a request's: means alone, as a ledger keeps no tokens.

    Of images that several requests share, those that this one owns, if it owns any.
    """
    own = requests.owner == number
    if not own.any():
        own = requests.train[number]
    places = np.flatnonzero(np.isin(train.preserve.labels, pair.preserve))
    shown = train.preserve.chosen(places)
    return stand_in_of(linears, train.forget, np.flatnonzero(own), shown, pair)


def only(extracted: Extracted, own: Bool[np.ndarray, " n"], config: RunConfig) -> Extracted:
    """The features for some images to forget alone, against the same images to preserve."""
    train, linears = extracted.train, extracted.linears
    chosen = train.forget.chosen(np.flatnonzero(own))
    forget = side_with_statistics(chosen, linears, split_seed(config), True)
    return replace(extracted, train=Sides(forget, train.preserve), requests=None)
