"""The Hugging Face model with the edit merged into its weights, which can be taken back and scaled.

torch is imported inside the functions, because the rest of the package does not need it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from jax_unlearn.attacks.groups import Groups
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.matching import match_answer, normal
from jax_unlearn.evaluate.vlm.model import VLM, load_vlm
from jax_unlearn.evaluate.vlm.questions import Question
from jax_unlearn.evaluate.vlm.scoring import Naming

Tensors = dict[str, Any]
# The control of what an attack finds: the model before the edit.
BEFORE = "before"
# Changes images before they are asked about.
Change = Callable[[Sequence[Image.Image]], list[Image.Image]]


@dataclass(frozen=True)
class EditedModel:
    """A model whose edited Linears have both their original and their edited weights at hand.

    Attributes:
        vlm: the model with the edit.
        original: the edited tensors before the edit, by name.
        edited: the same after it.
    """

    vlm: VLM
    original: Tensors
    edited: Tensors

    @classmethod
    def load(cls, checkpoint: Path, adapter: Path) -> "EditedModel":
        """Load a checkpoint and merge an adapter.

        Raises:
            UserError: torch or peft is missing, or the checkpoint or adapter cannot be loaded.
        """
        vlm = load_vlm(checkpoint, adapter)
        from peft.tuners.lora import LoraLayer

        prefix = "base_model.model."
        original = {
            f"{name.removeprefix(prefix)}.{part}": tensor.detach().clone()
            for name, module in vlm.model.named_modules()
            if isinstance(module, LoraLayer)
            for part, tensor in module.get_base_layer().named_parameters()
        }
        vlm = replace(vlm, model=vlm.model.merge_and_unload().eval())
        vlm.model.requires_grad_(False)
        parameters = dict(vlm.model.named_parameters())
        edited = {name: parameters[name].detach().clone() for name in original}
        return cls(vlm, original, edited)

    @contextmanager
    def scaled(self, amount: float) -> Iterator[None]:
        """With the edit scaled: 0 is the original model, 1 the edited one."""
        import torch

        parameters = dict(self.vlm.model.named_parameters())
        try:
            with torch.no_grad():
                for name, own in self.original.items():
                    parameters[name].copy_(torch.lerp(own, self.edited[name], amount))
            yield
        finally:
            with torch.no_grad():
                for name, own in self.edited.items():
                    parameters[name].copy_(own)

    def of(self, subject: str) -> AbstractContextManager[None]:
        """The original model for the subject BEFORE, and else the edited one."""
        return self.scaled(0.0 if subject == BEFORE else 1.0)

    @contextmanager
    def changed_linears(self, change: Callable[[Any], Any]) -> Iterator[None]:
        """With every Linear's weight [E, D_in] replaced by `change` of it."""
        import torch

        linears = [m for m in self.vlm.model.modules() if isinstance(m, torch.nn.Linear)]
        before = [linear.weight.detach().clone() for linear in linears]
        try:
            with torch.no_grad():
                for linear in linears:
                    linear.weight.copy_(change(linear.weight))
            yield
        finally:
            with torch.no_grad():
                for linear, weight in zip(linears, before, strict=True):
                    linear.weight.copy_(weight)


def unchanged(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return list(pictures)


def rates(
    vlm: VLM,
    naming: Naming,
    groups: Groups,
    change: Change = unchanged,
    answers: Callable[[VLM, Sequence[Image.Image], str], list[str]] = ask,
) -> dict[str, float | int | None]:
    """How often the model names the concept.

    Args:
        vlm: the model.
        naming: the question, or the pair of questions, that names it.
        groups: the images to ask about.
        change: applied to the images of each group.
        answers: asks the model.

    Returns:
        true_positive_rate: share of the concept's images whose answer names it;
        false_positive_rate: the same of images of the class it is moved onto; others: share of
        right answers about other images; right_names: share of the concept's images whose answer is
        the right one of the concept's classes. None of a group without images.
    """
    shares: dict[str, float | int | None] = {}
    by_group = {
        "true_positive_rate": groups.forget,
        "false_positive_rate": groups.counterpart,
        "others": groups.others,
    }
    for metric, files in by_group.items():
        if not files:
            shares[metric] = None
            continue
        pictures = change([read_image(file.source()) for file in files])
        said = [
            [
                match_answer(one, set(q.answers.values()), q.synonyms)
                for one in answers(vlm, pictures, q.text)
            ]
            for q in naming.questions
        ]
        given = [*zip(*said, strict=True)]
        right = [right_answers(naming.questions, file) for file in files]
        hits = (
            [one == own for one, own in zip(given, right, strict=True)]
            if metric == "others"
            else [one in naming.tuples for one in given]
        )
        shares[metric] = sum(hits) / len(hits)
        if metric == "true_positive_rate":
            exact = [one == own for one, own in zip(given, right, strict=True)]
            shares["right_names"] = sum(exact) / len(exact)
    return shares


def right_answers(questions: Sequence[Question], file: ImageFile) -> tuple[str, ...]:
    """The right answers about an image, in normal form; empty where a question has none."""
    return tuple(normal(q.answers.get(file.label, "")) for q in questions)
