"""What a linear probe names of each request of a ledger, before and after the edit."""

import numpy as np

from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.score import fit_probes
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.ledger.requests import Divided
from jax_unlearn.runs.run_directory import Metrics


def named(extracted: Extracted, adapter: LoraAdapter, divided: Divided) -> list[Metrics]:
    """For each request, the share of its held-out images that a linear probe names.

    The probe was fitted on the original embeddings; the worst projector counts. An image is named
    if its class is said to be one of the request's.
    """
    nothing = LoraAdapter({}, alpha=1.0, rank=1)
    probes = fit_probes(splits(extracted, extracted.train.image_means(), nothing))
    test = splits(extracted, extracted.test, adapter)
    said = {name: [probes[name].predict(x[split.is_forget]) for x in (split.before, split.after)]
            for name, split in test.items()}  # fmt: skip
    held_out = divided.forget.held_out
    found: list[Metrics] = []
    for number, request in enumerate(divided.requests):
        own = divided.of_request(number)
        classes = sorted({label for label, ours in zip(divided.forget.labels, own, strict=True)
                          if ours})  # fmt: skip
        shown = own[held_out]
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
                "named_before": shares[0],
                "named_after": shares[1],
            }
        )
    return found
