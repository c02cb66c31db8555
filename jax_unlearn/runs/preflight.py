"""What can be expected of the target stand_in, from the statistics alone, before it is fitted."""

from typing import Any

from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.probes import drift_by_class
from jax_unlearn.evaluate.reidentification import readable
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.runs.concepts import concepts_of, preserve_weight_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.solvers.stand_in import fit_stand_in

# What the model will say afterwards, where the stand-in is a class that it may have a name for.
NAMED = (
    "the model will call the one by the other's name, which of a person or a brand is a false "
    "statement about another; --stand-in FOLDER takes images that it has no name for"
)
UNNAMED = "the model will call the concept what it calls these images"
# Classes whose drift is named in the output.
ENDANGERED = 3


def preflight(extracted: Extracted, config: RunConfig) -> dict[str, Any]:
    """What the numbers of images allow, and how far each class to keep will move.

    The drift is that of a first fit without rounds of transport, on the training images.

    Raises:
        UserError: as `concepts_of`.
    """
    concepts = concepts_of(extracted, config)
    first = fit_stand_in(concepts, config.solver.rank, preserve_weight_of(config), rounds=0)
    found = []
    for pair, rows in zip(extracted.counterparts, concepts, strict=True):
        some = next(iter(rows.values()))
        found.append(
            {
                "concept": pair.concept,
                "counterpart": pair.name,
                "is_class": bool(pair.preserve),
                "images": len(some.forget),
                "stand_in_images": len(some.stand_in),
                "linear": readable(len(some.forget), len(some.stand_in)),
            }
        )
    train = extracted.train.image_means()
    return {"concepts": found, "drift": drift_by_class(splits(extracted, train, first.adapter))}


def in_words(expected: dict[str, Any]) -> list[str]:
    """The expectation in words: two lines for each concept, and one for the drift."""
    said = []
    for one in expected["concepts"]:
        concept, other = one["concept"], one["counterpart"]
        said += [
            f"{concept} → {other}: {NAMED if one['is_class'] else UNNAMED}",
            f"with {one['images']} images of {concept} and {one['stand_in_images']} of {other} a "
            f"linear reader of many fresh images can be expected to be right in {one['linear']:.0%}"
            "; chance is 50%",
        ]
    drift = sorted(expected["drift"].items(), key=lambda item: -item[1])
    named = ", ".join(f"{label} {share:.2f}" for label, share in drift[:ENDANGERED])
    return [
        *said,
        f"drift of classes to keep after a first fit, largest, and more after all rounds: {named}",
    ]
