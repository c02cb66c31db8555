"""What is attacked: an edited model, and images that the edit was not fitted on.

The attacker fits on one half of the held-out images and is tested on the other half.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jax_unlearn.attacks.groups import Groups, halved, spread
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.evaluate.vlm.questions import Question, load_questions
from jax_unlearn.evaluate.vlm.scoring import Naming, naming
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.features.samples import images
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runtime.errors import UserError

if TYPE_CHECKING:
    from jax_unlearn.attacks.edited_model import EditedModel

Budget = Literal["small", "full"]
# Largest number of images of a group that are tested, by budget.
MOST_TESTED = {"small": 64, "full": 400}


@dataclass
class AttackedRun:
    """A run, with what its attackers may use.

    Attributes:
        checkpoint: the run's checkpoint.
        adapter_dir: the run's adapter.
        adapter: the same, for JAX.
        extracted: the run's features.
        questions_file: questions to ask the model; by default what it sees.
        extraction: how the tower is run.
        tower_and_preprocessor: loads the original tower and the checkpoint's image processor.
        budget: how much the attacker spends.
        seeds: seeds; each repeats what is random.
    """

    checkpoint: Path
    adapter_dir: Path
    adapter: LoraAdapter
    extracted: Extracted
    questions_file: Path | None
    extraction: ExtractionSettings
    tower_and_preprocessor: Callable[[], tuple[Qwen3VisionTower, Preprocessor]]
    budget: Budget = "small"
    seeds: tuple[int, ...] = (0,)
    _splits: dict[int, tuple[Groups, Groups]] = field(default_factory=dict)

    @cached_property
    def _tower(self) -> tuple[Qwen3VisionTower, Preprocessor]:
        return self.tower_and_preprocessor()

    @property
    def tower(self) -> Qwen3VisionTower:
        return self._tower[0]

    @property
    def preprocessor(self) -> Preprocessor:
        return self._tower[1]

    @cached_property
    def model(self) -> "EditedModel":
        """The Hugging Face model, loaded when it is first asked for.

        Raises:
            UserError: torch or peft is not installed, or the checkpoint cannot be loaded.
        """
        from jax_unlearn.attacks.edited_model import EditedModel

        return EditedModel.load(self.checkpoint, self.adapter_dir)

    @cached_property
    def held_out(self) -> Groups:
        """All held-out images."""
        test = self.extracted.test
        onto = {label for pair in self.extracted.counterparts for label in pair.preserve}
        preserve = images(test.preserve)
        own = self.extracted.judged.get("stand_in")
        counterpart = [file for file in preserve if file.label in onto]
        return Groups(
            tuple(images(test.forget)),
            tuple(images(own) if own else counterpart),
            tuple(file for file in preserve if file.label not in onto),
        )

    def split(self, seed: int) -> tuple[Groups, Groups]:
        """(images that the attacker fits on, images to test), disjoint; each class is halved."""
        if seed not in self._splits:
            random = np.random.default_rng([seed, 20])
            whole = self.held_out
            pairs = [
                halved(side, random) for side in (whole.forget, whole.counterpart, whole.others)
            ]
            most = MOST_TESTED[self.budget]
            fit = Groups(*(first for first, _ in pairs))
            test = Groups(*(spread(second, most) for _, second in pairs))
            self._splits[seed] = fit, test
        return self._splits[seed]

    @cached_property
    def forget_classes(self) -> set[str]:
        return set(self.extracted.test.forget.labels)

    @cached_property
    def questions(self) -> list[Question]:
        """The run's questions."""
        return load_questions(self.questions_file, self.extracted.test.labels.tolist())

    @cached_property
    def naming(self) -> Naming:
        """The open question whose answer names the concept, the first if there are several.

        Raises:
            UserError: no open question does.
        """
        preserve = set(self.extracted.test.preserve.labels)
        found = naming(self.questions, self.forget_classes, preserve)
        for one in found:
            if one.questions[0].is_open:
                return one
        raise UserError(
            f"{self.questions_file or 'the default question'}: no open question has answers that "
            "tell the forgotten classes from those to keep; give the run --questions that do"
        )

    @cached_property
    def cannot_be_asked(self) -> str | None:
        """Why the language model cannot be asked whether it names the concept, or None."""
        if self.extracted.kind != "qwen_images":
            return "asks a language model, and CLIP has none"
        for name in ("torch", "peft"):
            if not find_spec(name):
                return f"needs {name}: pip install 'jax-unlearn[torch]'"
        try:
            self.naming  # noqa: B018
        except UserError as error:
            return str(error)
        fit, test = self.split(self.seeds[0])
        if not (fit.forget and test.forget):
            return "needs two or more held-out images of a class to forget; hold out more"
        return None
