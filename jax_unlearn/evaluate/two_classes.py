"""Embeddings of a concept and of its counterpart, before and after the edit, for readers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jax_unlearn.evaluate import reidentification
from jax_unlearn.evaluate.reidentification import TwoClasses, before_and_after, enough, readable
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.features.token_sample import by_image, having_tokens
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.projectors import Projector, projectors_of, rows_change
from jax_unlearn.objective.targets import STAND_IN

# A concept takes up to a second.
MOST_CONCEPTS = 20
# How the tokens of an image become one row.
POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max": lambda tokens: tokens.max(axis=1),
    "spread": lambda tokens: tokens.std(axis=1),
}
Embeddings = Float[np.ndarray, "_ _"]
Mask = Bool[np.ndarray, " _"]


def reidentify(extracted: Extracted, adapter: LoraAdapter) -> list[dict[str, Any]]:
    """Scores of readers of each concept against its counterpart; see `reidentification`.

    Of more than MOST_CONCEPTS the first ones.
    """
    return [of_pair(extracted, adapter, pair) for pair in extracted.counterparts[:MOST_CONCEPTS]]


@dataclass(frozen=True)
class Pools:
    """Embeddings of a concept and of its counterpart by how tokens are pooled (mean, max, spread).

    Attributes:
        before: before the edit.
        after: after it.
        fresh: whether the images that readers are fitted on had no part in the edit.
        images: number of held-out images of each side.
    """

    before: Mapping[str, TwoClasses]
    after: Mapping[str, TwoClasses]
    fresh: bool
    images: Mapping[str, int]


def pools_of(extracted: Extracted, adapter: LoraAdapter, pair: Counterpart) -> Pools:
    """The embeddings that readers of a concept are fitted on and tested with."""
    test, train = extracted.test, extracted.train.image_means()
    shown = np.isin(test.forget.labels, pair.forget)
    own = extracted.judged.get(STAND_IN)
    counterpart = own or test.preserve
    kept = np.ones(len(counterpart.files), bool)
    if pair.preserve:
        kept = np.isin(counterpart.labels, pair.preserve)
    counts = int(shown.sum()), int(kept.sum())
    fresh = enough(*counts) or own is not None
    groups = [(test.forget, shown), (counterpart, kept)]
    if not fresh:
        of_class = np.isin(train.preserve.labels, pair.preserve)
        groups += [
            (train.forget, np.isin(train.forget.labels, pair.forget)),
            (train.preserve, of_class if pair.preserve else np.ones(len(of_class), bool)),
        ]
    sides = [means(extracted, features, mask, adapter) for features, mask in groups]
    found = [{"mean": two_classes([side[when] for side in sides])} for when in (0, 1)]
    projectors = projectors_of(extracted.linears)
    if fresh and all(p.is_linear for p in projectors):
        tokens = [pooled(projectors, features, mask, adapter) for features, mask in groups]
        for pool in POOLS if all(tokens) else ():
            for when in (0, 1):
                found[when][pool] = two_classes([side[pool][when] for side in tokens])
    images = dict(zip(("forget", "counterpart"), counts, strict=True))
    return Pools(found[0], found[1], fresh, images)


def of_pair(extracted: Extracted, adapter: LoraAdapter, pair: Counterpart) -> dict[str, Any]:
    pools = pools_of(extracted, adapter, pair)
    facts: dict[str, Any] = {
        "concept": pair.concept,
        "counterpart": pair.name,
        "fresh": pools.fresh,
        "images": pools.images,
    }
    if extracted.stand_ins:
        number = extracted.counterparts.index(pair)
        stand_in = extracted.stand_ins[number]
        some = next(iter(stand_in.means.values()))
        facts["expected_linear"] = readable(len(stand_in.forget), len(some))
    if not min(pools.images.values()):
        return facts | {"few_shot": {}, "refitted": {}}
    # Of many concepts each is tried less often, so that the time stays bounded.
    draws = max(1, reidentification.DRAWS // min(len(extracted.counterparts), MOST_CONCEPTS))
    return facts | before_and_after(pools.before, pools.after, draws)


def two_classes(groups: list[Embeddings]) -> TwoClasses:
    return TwoClasses(groups[0], groups[1], (groups[2], groups[3]) if len(groups) > 2 else None)


def means(
    extracted: Extracted, features: SampleFeatures, mask: Mask, adapter: LoraAdapter
) -> tuple[Embeddings, Embeddings]:
    """Mean embeddings by all projectors side by side, before and after."""
    before, after = [], []
    own = features if mask.all() else features.chosen(np.flatnonzero(mask))
    for projector in projectors_of(extracted.linears):
        outputs = projector.last.output(own.taps[projector.last.name].x)
        before.append(outputs)
        after.append(outputs + projector.change(own, adapter))
    return np.concatenate(before, axis=1), np.concatenate(after, axis=1)


def pooled(
    projectors: list[Projector], features: SampleFeatures, mask: Mask, adapter: LoraAdapter
) -> Mapping[str, tuple[Embeddings, Embeddings]]:
    """The images' tokens pooled in each way, before and after; empty without sampled tokens."""
    found: dict[str, tuple[list[Embeddings], list[Embeddings]]] = {k: ([], []) for k in POOLS}
    for projector in projectors:
        last = projector.last
        sampled = features.tokens.get(last.name)
        if sampled is None or not len(sampled.x):
            return {}
        own = mask[having_tokens(sampled)]
        if not own.any():
            return {}
        tokens = by_image(sampled)[own]
        rows = tokens.reshape(-1, tokens.shape[-1])
        outputs = last.output(rows)
        changed = outputs + rows_change(last, rows, adapter)
        for name, pool in POOLS.items():
            for when, y in enumerate((outputs, changed)):
                found[name][when].append(pool(y.reshape(*tokens.shape[:2], y.shape[-1])))
    return {
        k: (np.concatenate(b, axis=1), np.concatenate(a, axis=1)) for k, (b, a) in found.items()
    }
