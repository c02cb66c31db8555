"""`Extracted` whose content is known, without a checkpoint, an image or a tower."""

from pathlib import Path

import numpy as np

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import SampleFeatures, Sides, TapRows
from jax_unlearn.features.streaming import SideStatistics
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runs.settings.config import RunConfig

MERGER, DEEPSTACK = "merger.linear_fc2", "deepstack_merger_list.0.linear_fc2"
TEXT, VISUAL = "text_projection", "visual_projection"


def identity(name, size):
    """A Linear whose outputs are its rows."""
    return FrozenLinear(name, np.eye(size, dtype=np.float32), np.zeros(size, np.float32))


def side(taps, labels, linears=(), forget=False, granularity="images", folder=Path()):
    """Features of some samples.

    Args:
        taps: by the name of a Linear, an array [tokens, D_in] for each sample.
        linears: of which statistics are kept.
    """
    if linears and linears[0].name == TEXT:
        files = tuple(Prompt(f"a {label}", label) for label in labels)
    else:
        files = tuple(ImageFile(folder / f"{i}.png", label) for i, label in enumerate(labels))
    rows = {name: [np.asarray(x, np.float32) for x in of_tap] for name, of_tap in taps.items()}
    means = {name: [x.mean(axis=0)[None] for x in of_tap] for name, of_tap in rows.items()}
    features = SampleFeatures(files, {name: TapRows.of(x) for name, x in means.items()})
    statistics = SideStatistics(linears, forget, granularity, files)
    for i in range(len(files)):
        statistics.add(i, {name: of_tap[i] for name, of_tap in rows.items()})
    return statistics.finish(features, range(len(files)))


def extracted(linears, train, test, **more):
    """Of the four groups of samples: (forget, preserve) to train on and to test with."""
    empty = {one.projector: np.zeros(one.shape[0], np.float32) for one in linears}
    return Extracted(
        linears=tuple(linears),
        train=Sides(*train),
        test=Sides(*test),
        empty=empty,
        counts={},
        **more,
    )


def moving(name, a, b):
    """The adapter of one Linear that adds (a · x) b to the outputs of a row x."""
    pair = LoraPair(*(np.array(x, np.float32) for x in ([a], [[one] for one in b])))
    return LoraAdapter({name: pair}, alpha=1.0, rank=1)


def settings(**options):
    """Of a run in the closed form whose samples lie nowhere."""
    nowhere = Path("nowhere")
    return RunConfig.of(checkpoint=nowhere, out=nowhere, optimizer="closed_form", **options)
