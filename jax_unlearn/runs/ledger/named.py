"""What a linear probe names of each request of a ledger, before and after the edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.score import fit_probes
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.similarity import Named, classify
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.objective.projectors import projectors_of
from jax_unlearn.runs.run_directory import Metrics


@dataclass(frozen=True)
class NearestName:
    """Says of embeddings which original name is nearest."""

    names: Named

    def predict(self, x: Float[np.ndarray, "n e"]) -> np.ndarray:
        return classify(x, self.names)


class Probes:
    """Readers of the original embeddings, one for each projector, fitted when first asked.

    For images linear probes; for names the nearest original name by cosine.

    Args:
        extracted: the features of a ledger's requests, whose training images they are fitted on.
    """

    def __init__(self, extracted: Extracted) -> None:
        assert extracted.requests is not None
        self.extracted, self.requests = extracted, extracted.requests

    @cached_property
    def fitted(self) -> Mapping[str, Any]:
        original = splits(self.extracted, self.train, NO_CHANGE)
        if self.extracted.kind == "clip_names":
            return {
                name: NearestName(Named(one.before, one.labels)) for name, one in original.items()
            }
        return fit_probes(original)

    @cached_property
    def train(self) -> Sides:
        return self.extracted.train.image_means()

    @cached_property
    def classes(self) -> list[list[str]]:
        """The classes of each request, of its training and held-out images."""
        sides = (self.extracted.train.forget, self.extracted.test.forget)
        labels = np.concatenate([side.labels for side in sides])
        own = np.concatenate([self.requests.train, self.requests.test], axis=1)
        return [sorted({*labels[one].tolist()}) for one in own]

    @cached_property
    def before(self) -> Mapping[str, np.ndarray]:
        """The original embeddings of the training images to forget."""
        return {
            one.name: one.last.output(self.train.forget.taps[one.last.name].x)
            for one in projectors_of(self.extracted.linears)
        }

    def named_in_training(self, adapter: LoraAdapter) -> list[int]:
        """For each request that is fitted, how many of its training images a probe names.

        An image is named if its class is said to be one of the request's. One whose request owns no
        image, and is not fitted, counts for its owner.
        """
        forget, owner = self.train.forget, self.requests.owner
        owning = {*owner.tolist()}
        said = [
            self.fitted[one.name].predict(self.before[one.name] + one.change(forget, adapter))
            for one in projectors_of(self.extracted.linears)
        ]
        found = np.zeros(len(self.requests.ids), int)
        for number, classes in enumerate(self.classes):
            shown = np.flatnonzero(self.requests.train[number])
            named = shown[np.any([np.isin(one[shown], classes) for one in said], axis=0)]
            if number in owning:
                found[number] += len(named)
            else:
                np.add.at(found, owner[named], 1)
        return found.tolist()

    def of_requests(self, adapter: LoraAdapter, strengths: Sequence[float]) -> list[Metrics]:
        """For each request, the share of its held-out images that a probe names.

        The worst projector counts.
        """
        test, requests = splits(self.extracted, self.extracted.test, adapter), self.requests
        said = {name: [self.fitted[name].predict(x[split.is_forget])
                       for x in (split.before, split.after)]
                for name, split in test.items()}  # fmt: skip
        found: list[Metrics] = []
        for number, classes in enumerate(self.classes):
            shown = requests.test[number]
            shares = [
                max(float(np.isin(both[when][shown], classes).mean()) for both in said.values())
                if shown.any() else None
                for when in (0, 1)
            ]  # fmt: skip
            found.append(
                {
                    "id": requests.ids[number],
                    "concept": requests.concepts[number],
                    "classes": classes,
                    "images": int(requests.train[number].sum()),
                    "held_out": int(shown.sum()),
                    "strength": strengths[number],
                    "named_before": shares[0],
                    "named_after": shares[1],
                }
            )
        return found
