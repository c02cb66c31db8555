"""The attacks by name, and how to add one.

An attack is a list of trials. A trial measures one setting of the attack on the edited model or on
a control, and gives rows for attacks.json. Trials of an attack are independent of each other, so
that an interrupted suite goes on after the last one that was finished.

A package adds attacks through the entry point group `jax_unlearn.attacks`: each entry point is an
`Attack`. A program may also call `register`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from jax_unlearn.runtime.errors import UserError

if TYPE_CHECKING:
    from jax_unlearn.attacks.target import AttackedRun

GROUP = "jax_unlearn.attacks"
EDITED = "edited"
# Modules of the attacks that are built in, in the order in which they run: quick ones first.
BUILT_IN = (
    "readers",
    "membership",
    "image_changes",
    "quantisation",
    "survival",
    "in_context",
    "universal_perturbation",
    "soft_prompt",
    "relearning",
    "relearning_merger",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One measurement.

    Attributes:
        subject: what is attacked: EDITED, or the name of a control such as "before".
        setting: the values that tell it from the attack's other trials, such as the number of
            images.
        measure: returns rows {metric: value}, and further setting values such as the number of
            steps; the subject, setting and seed are added to each.
    """

    subject: str
    setting: Mapping[str, Any]
    seed: int
    measure: Callable[[], list[Row]]

    @property
    def name(self) -> str:
        """A name that is unique within the attack, by which a finished trial is recognised."""
        values = ", ".join(f"{key} {value}" for key, value in self.setting.items())
        return f"{values or 'all'} · {self.subject} · seed {self.seed}"


@dataclass(frozen=True)
class Attack:
    """An attack on an edited model.

    Attributes:
        name: its name on the command line and in attacks.json.
        does: one sentence: what the attacker has and does.
        budget: the budget in words, for "small" and "full".
        controls: what each control is, by its subject.
        needs_torch: whether it asks or trains the Hugging Face model.
        trials: the trials on a run; may be called without torch, as nothing is measured yet.
        left_out: what is not tried on a run, or limited, and why, in sentences.
    """

    name: str
    does: str
    budget: Mapping[str, str]
    controls: Mapping[str, str]
    needs_torch: bool
    trials: Callable[["AttackedRun"], Iterator[Trial]]
    left_out: Callable[["AttackedRun"], list[str]] = lambda run: []


_registered: dict[str, Attack] = {}


def register(attack: Attack) -> None:
    """Add an attack for this process.

    Raises:
        ValueError: there is one of that name.
    """
    if attack.name in known():
        raise ValueError(f"{attack.name}: an attack of that name exists")
    _registered[attack.name] = attack


def known() -> dict[str, Attack]:
    """All attacks by name: built in, installed, and registered ones.

    Raises:
        UserError: an entry point is no `Attack`, or has the name of another.
    """
    built_in = (import_module(f"jax_unlearn.attacks.{module}").ATTACK for module in BUILT_IN)
    found: dict[str, Attack] = {attack.name: attack for attack in built_in}
    for point in entry_points(group=GROUP):
        attack = point.load()
        if not isinstance(attack, Attack):
            raise UserError(
                f"entry point {point.name} of {GROUP}: is no jax_unlearn.attacks.registry.Attack; "
                "uninstall or repair its package"
            )
        if attack.name in found:
            raise UserError(
                f"entry point {point.name} of {GROUP}: an attack named {attack.name} exists; "
                "uninstall its package, or give the attack another name"
            )
        found[attack.name] = attack
    return found | _registered


def chosen(names: tuple[str, ...]) -> list[Attack]:
    """The attacks of these names, all without names.

    Raises:
        UserError: there is no attack of a name.
    """
    attacks = known()
    if unknown := [name for name in names if name not in attacks]:
        raise UserError(f"--kinds {unknown[0]}: must be any of {', '.join(attacks)}")
    return [attack for name, attack in attacks.items() if not names or name in names]
