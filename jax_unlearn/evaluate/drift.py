"""How far the edit moves the embeddings of each class to keep."""

from jax_unlearn.evaluate.probes import drift
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import Sides
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.projectors import projectors_of


def drift_by_class(extracted: Extracted, sides: Sides, adapter: LoraAdapter) -> dict[str, float]:
    """Mean relative distance of each class's images from where they were, worst projector.

    Args:
        extracted: gives the projectors.
        sides: features with one row per image; those to preserve are used.
        adapter: the edit.
    """
    keep = sides.preserve
    found = dict.fromkeys(sorted({str(label) for label in keep.labels}), 0.0)
    for projector in projectors_of(extracted.linears):
        before = projector.last.output(keep.taps[projector.last.name].x)
        after = before + projector.change(keep, adapter)
        for label in found:
            own = keep.labels == label
            moved = drift(before[own], after[own])["relative"]
            found[label] = max(found[label], moved)
    return found
