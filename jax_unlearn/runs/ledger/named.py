"""What a linear probe names of each request of a ledger, before and after the edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.score import fit_probes
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides
from jax_unlearn.features.similarity import Named, classify
from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.objective.projectors import projectors_of
from jax_unlearn.runs.ledger.requests import Divided
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
        extracted: the features, whose training images they are fitted on.
        divided: the images of the requests.
    """

    def __init__(self, extracted: Extracted, divided: Divided) -> None:
        self.extracted, self.divided = extracted, divided

    @cached_property
    def fitted(self) -> Mapping[str, Any]:
        original = splits(self.extracted, self.train, NO_CHANGE)
        if self.divided.forget.texts:
            return {
                name: NearestName(Named(one.before, one.labels)) for name, one in original.items()
            }
        return fit_probes(original)

    @cached_property
    def train(self) -> Sides:
        return self.extracted.train.image_means()

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
        divided, forget = self.divided, self.train.forget
        rows = ~divided.forget.held_out
        owner = divided.owner[rows]
        owning = {*owner.tolist()}
        said = [
            self.fitted[one.name].predict(self.before[one.name] + one.change(forget, adapter))
            for one in projectors_of(self.extracted.linears)
        ]
        found = np.zeros(len(divided.requests), int)
        for number in range(len(divided.requests)):
            own = divided.of_request(number)
            shown, classes = np.flatnonzero(own[rows]), classes_of(divided, own)
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
        test, divided = splits(self.extracted, self.extracted.test, adapter), self.divided
        said = {name: [self.fitted[name].predict(x[split.is_forget])
                       for x in (split.before, split.after)]
                for name, split in test.items()}  # fmt: skip
        held_out = divided.forget.held_out
        found: list[Metrics] = []
        for number, request in enumerate(divided.requests):
            own = divided.of_request(number)
            classes, shown = classes_of(divided, own), own[held_out]
            shares = [
                max(float(np.isin(both[when][shown], classes).mean()) for both in said.values())
                if shown.any() else None
                for when in (0, 1)
            ]  # fmt: skip
            found.append(
                {
                    "id": request.id,
                    "concept": request.concept,
                    "classes": classes,
                    "images": int((own & ~held_out).sum()),
                    "held_out": int(shown.sum()),
                    "strength": strengths[number],
                    "named_before": shares[0],
                    "named_after": shares[1],
                }
            )
        return found


def classes_of(divided: Divided, own: Bool[np.ndarray, " n"]) -> list[str]:
    """The classes of some of the images to forget."""
    return sorted({divided.forget.labels[i] for i in np.flatnonzero(own)})
