"""Declare beside a setting when it has an effect, so that it can be refused elsewhere.

    epochs: int = used_if(2000, optimizer="adam")

`runs.settings.checks` compares the conditions with the facts of a command, and refuses a setting
that was changed where it would not be used.
"""

from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any

USED_IF = "used_if"


def used_if(default: Any = MISSING, **conditions: Any) -> Any:
    """A dataclass field that has an effect only where every condition holds.

    Args:
        conditions: by the name of a fact, the value that it must have, or a tuple of such values.
    """
    allowed = {k: v if isinstance(v, tuple) else (v,) for k, v in conditions.items()}
    return field(default=default, metadata={USED_IF: allowed})


def conditions_of(one: "Field[Any]") -> dict[str, tuple[Any, ...]]:
    """The conditions that `used_if` was given for a field; empty for a field without."""
    return dict(one.metadata.get(USED_IF, {}))


def leaf_fields(kind: Any) -> "dict[str, Field[Any]]":
    """The settings of a dataclass, or of an instance, by their names; groups are opened."""
    found: dict[str, Field[Any]] = {}
    for one in fields(kind):
        group = one.type if isinstance(kind, type) else getattr(kind, one.name)
        found |= leaf_fields(group) if is_dataclass(group) else {one.name: one}
    return found


def option(name: str) -> str:
    """A field's name as an option of the command line."""
    return "--" + name.replace("_", "-")
