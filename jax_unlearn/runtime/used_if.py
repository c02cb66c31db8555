"""Declare with a setting when it has an effect, so that it is refused where it has none.

    epochs: int = used_if(2000, optimizer="adam")

`runs.settings.checks` compares the conditions with the facts of a command, and refuses a setting
that differs from its default where it would be ignored.
"""

from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any

USED_IF = "used_if"


def used_if(default: Any = MISSING, **conditions: Any) -> Any:
    """A dataclass field that has an effect only where every condition holds.

    Args:
        default: the field's default value; MISSING for a required field.
        conditions: the required value of each fact, or a tuple of allowed values.
    """
    allowed = {k: v if isinstance(v, tuple) else (v,) for k, v in conditions.items()}
    return field(default=default, metadata={USED_IF: allowed})


def conditions_of(one: "Field[Any]") -> dict[str, tuple[Any, ...]]:
    """The conditions passed to `used_if` for a field; empty for any other field."""
    return dict(one.metadata.get(USED_IF, {}))


def leaf_fields(kind: Any) -> "dict[str, Field[Any]]":
    """The settings of a dataclass (or instance) by name, including those of nested dataclasses."""
    found: dict[str, Field[Any]] = {}
    for one in fields(kind):
        group = one.type if isinstance(kind, type) else getattr(kind, one.name)
        found |= leaf_fields(group) if is_dataclass(group) else {one.name: one}
    return found


def option(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")
