"""A path to the language model, or to CLIP's embeddings: what every kind of it can do."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jax_unlearn.features.samples import SampleFeatures
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import ProjectorProblem
from jax_unlearn.objective.targets import Target


@runtime_checkable
class Path(Protocol):
    """A frozen way from a tap to embeddings, some of whose Linears may be adapted."""

    @property
    def name(self) -> str: ...

    @property
    def last_tap(self) -> str:
        """Name of the Linear whose rows are those of the loss."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """(E, D_in) of each Linear whose tap is needed, by its full name."""

    @property
    def last_linear(self) -> tuple[Float[np.ndarray, "e d_in"], Float[np.ndarray, " e"]]:
        """Weight and bias of the Linear that gives the embeddings, in torch's layout."""

    @property
    def is_linear(self) -> bool:
        """Whether what may be adapted changes the embeddings linearly in the rows."""

    def output(self, x: Float[np.ndarray, "n d_in"]) -> Float[np.ndarray, "n e"]:
        """The original embeddings, from rows of the last tap."""

    def change(self, samples: SampleFeatures, adapter: LoraAdapter) -> Float[np.ndarray, "n e"]:
        """How the adapter changes each sample's embedding."""

    def problem(
        self,
        adapted: Sequence[str],
        forget: SampleFeatures,
        target: Target,
        preserve: SampleFeatures,
    ) -> tuple[str, tuple[ProjectorProblem, ...]]:
        """The key of this path in the loss and its part: two, if some images are to choose by."""
