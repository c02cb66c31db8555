"""The options of a command: names, values, defaults and texts, from its dataclass."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from jax_unlearn.runtime.used_if import option

POSITIONAL = get_args(Positional[int])[1]


@dataclass(frozen=True)
class Option:
    """An option: the dataclass that declares it, its name, values, default and meaning.

    values: the values in words, such as "path"; choices are separated by commas. default: the
    default value; MISSING for a required option.
    """

    group: type
    name: str
    values: str
    default: Any
    text: str
    positional: bool = False

    @property
    def flag(self) -> str:
        """As typed on the command line."""
        return self.name.replace("_", "-").upper() if self.positional else option(self.name)

    @property
    def shown_default(self) -> str:
        """The default in words; empty if there is none."""
        if self.default is MISSING:
            return "required"
        if self.default is None or self.default == ():
            return ""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return " ".join(map(str, values))


def options_of(kind: type) -> Iterator[Option]:
    """Every option of a dataclass, including those of nested dataclasses."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, marks = stripped(hints[field.name])
        if is_dataclass(hint) and isinstance(hint, type):
            yield from options_of(hint)
            continue
        owner = owner_of(kind, field.name)
        text = documented(owner).get(field.name, "")
        positional = POSITIONAL in marks
        values = values_of(hint)
        yield Option(owner, field.name, values, default_of(field), text, positional)


def summary(kind: type) -> str:
    """The first paragraph of a dataclass's docstring, on one line."""
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def owner_of(kind: type, name: str) -> type:
    """The class that declares, or redeclares, a field."""
    return next(c for c in kind.__mro__ if name in inspect.get_annotations(c))


def stripped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type without annotations, annotations)."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return inner, tuple(marks)
    return hint, ()


def default_of(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def values_of(hint: Any) -> str:
    """The values of an option, in words."""
    hint, _ = stripped(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(values_of(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"{values_of(arguments[0])}; any number"
    if hint is bool:
        return "flag"
    if isinstance(hint, type) and issubclass(hint, PurePath):
        return "path"
    return {str: "text", int: "integer", float: "number"}.get(hint, str(hint))


@cache
def documented(kind: type) -> dict[str, str]:
    """The string that follows each field in the source of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            target, value = field.target, text.value
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                found[target.id] = " ".join(str(value.value).split())
    return found
