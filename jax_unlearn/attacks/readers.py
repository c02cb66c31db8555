"""Attack: fit readers on labelled images' embeddings, to find the concept again.

Few-shot readers on 1 to 100 labelled images of each side, and readers fitted on all there are
(`evaluate.reidentification`), by how an image's tokens are pooled. JAX and scikit-learn only.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from jax_unlearn.attacks.edited_model import BEFORE
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.data.images import ImageReader
from jax_unlearn.evaluate.reidentification import few_shot
from jax_unlearn.evaluate.two_classes import Pools, pools_of
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.extractor import Extractor
from jax_unlearn.features.samples import SampleFeatures, Sides, images
from jax_unlearn.features.stand_in import Counterpart
from jax_unlearn.models.lora import NO_CHANGE
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.objective.projectors import frozen_linears

PERMUTED, UNTRAINED = "permuted labels", "untrained tower"
DRAWS = {"small": 5, "full": 20}
CONTROLS = {
    BEFORE: "the model before the edit",
    PERMUTED: "readers of the edited model fitted on labels that are exchanged at random",
    UNTRAINED: "a tower of the same shape with random weights, which knows no class",
}


def trials(run: AttackedRun) -> Iterator[Trial]:
    for pair in run.extracted.counterparts:
        for subject in (EDITED, *controls(run, pair)):
            for seed in run.seeds:
                measure = partial(read, run, pair, subject, seed)
                setting = {"concept": pair.concept, "counterpart": pair.name}
                yield Trial(subject, setting, seed, measure)


def controls(run: AttackedRun, pair: Counterpart) -> list[str]:
    """The controls of a run; the untrained tower reads only held-out images of a Qwen tower."""
    again = run.extracted.kind == "qwen_images" and fresh(run, pair)
    return [name for name in CONTROLS if name != UNTRAINED or again]


def left_out(run: AttackedRun) -> list[str]:
    few = [pair.concept for pair in run.extracted.counterparts if not fresh(run, pair)]
    found = [
        f"{concept}: too few held-out images to halve; readers are fitted on the images of the "
        f"edit, which flatters the edit, and the {UNTRAINED} is not tried"
        for concept in few
    ]
    return found if run.extracted.counterparts else ["no class to keep is a counterpart"]


def fresh(run: AttackedRun, pair: Counterpart) -> bool:
    return pools_of(run.extracted, NO_CHANGE, pair).fresh


def read(run: AttackedRun, pair: Counterpart, subject: str, seed: int) -> list[Row]:
    """A row for each pool and number of labelled images, and for each refitted reader."""
    extracted, adapter = run.extracted, run.adapter
    if subject == UNTRAINED:
        extracted, adapter = untrained(run, seed), NO_CHANGE
    pools: Pools = pools_of(extracted, NO_CHANGE if subject == BEFORE else adapter, pair)
    rows: list[Row] = []
    for pool, classes in pools.after.items():
        scores = few_shot(classes, draws=DRAWS[run.budget], seed=seed, permuted=subject == PERMUTED)
        rows += [
            {
                "pool": pool,
                "reader": "best of four",
                "labelled": int(k),
                "balanced": mean,
                "least": least,
                "most": most,
            }
            for k, (mean, least, most) in scores.curve.items()
        ]
        rows += [
            {
                "pool": pool,
                "reader": name,
                "labelled": scores.labelled,
                "balanced": found["balanced"],
                "true_positive_rate": found["forget"],
                "false_positive_rate": 1 - found["counterpart"],
            }
            for name, found in scores.refitted.items()
        ]
    return rows


def untrained(run: AttackedRun, seed: int) -> Extracted:
    """The held-out images' features by a tower with random weights."""
    config = run.tower.config
    tower = Qwen3VisionTower(config, rngs=nnx.Rngs(seed))
    linears = frozen_linears(tower, [linear.name for linear in run.extracted.linears])
    extractor = Extractor(
        tower, run.preprocessor, [one.name for one in linears], run.extraction, workers=0
    )
    quiet = Console(quiet=True)

    def again(features: SampleFeatures) -> SampleFeatures:
        files = images(features)
        tokens = next(iter(features.tokens.values()), None)
        sampled = {files[i] for i in np.unique(tokens.image)} if tokens else set()
        return extractor.extract(files, ImageReader(), "Untrained tower", quiet, sampled=sampled)

    before = run.extracted
    test = Sides(again(before.test.forget), again(before.test.preserve))
    judged: dict[str, Any] = {
        name: again(features) for name, features in before.judged.items() if name == "stand_in"
    }
    return replace(before, linears=tuple(linears), test=test, judged=judged, stand_ins=())


ATTACK = Attack(
    "readers",
    "Fits readers on the embeddings of labelled images, to tell the concept from the class it is "
    "moved onto.",
    {
        budget: f"1, 3, 10, 30 and 100 labelled images of each side and all there are; the best of "
        f"four readers, mean of {draws} draws"
        for budget, draws in DRAWS.items()
    },
    CONTROLS,
    False,
    trials,
    left_out,
)
