"""docs/settings.md: every option of every command, generated from the dataclasses."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from benchmarks.markdown import table_of
from jax_unlearn.runs import cli

POSITIONAL = get_args(Positional[int])[1]


@dataclass(frozen=True)
class Option:
    """An option: the dataclass that declares it, its name, and its row of the table."""

    group: type
    name: str
    cells: tuple[str, str, str, str]


def settings() -> str:
    """A section per command; a command that has most options of `run` does not repeat them."""
    sections, run = [], dict[str, Option]()
    for name, command, description in commands():
        options = list(options_of(command))
        sections.append(f"## {name}\n\n{description}")
        shared = {option.name for option in options if same_meaning(option, run.get(option.name))}
        if 2 * len(shared) > len(run) > 0:
            without = ", ".join(f"`--{n.replace('_', '-')}`" for n in run if n not in shared)
            but = f" but {without}" if without else ""
            sections.append(f"The options of [run](#run){but}, and:")
            options = [option for option in options if option.name not in shared]
        run = run or {option.name: option for option in options}
        for group in dict.fromkeys(option.group for option in options):
            if group is not command:
                sections.append(f"**{group.__name__}.** {summary(group)}")
            rows = [option.cells for option in options if option.group is group]
            sections.append(table_of(["option", "values", "default", "meaning"], rows))
    return "\n\n".join(sections).replace("---:", "---")


def same_meaning(one: Option, other: Option | None) -> bool:
    """Whether an option has the same meaning in two commands."""
    return other is not None and one.cells[3] == other.cells[3]


def commands() -> Iterator[tuple[str, type, str]]:
    """Name, dataclass and description of each command, in the order of `--help`; run first."""
    found = []
    for annotated in get_args(cli.Command):
        kind, command = get_args(annotated)
        found.append((command.name, kind, command.description or summary(kind)))
    yield from sorted(found, key=lambda one: one[0] != "run")


def summary(kind: type) -> str:
    """The first paragraph of a dataclass's docstring, on one line."""
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def options_of(kind: type) -> Iterator[Option]:
    """Every option of a dataclass, including those of nested dataclasses."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, marks = stripped(hints[field.name])
        if is_dataclass(hint) and isinstance(hint, type):
            yield from options_of(hint)
            continue
        owner = owner_of(kind, field.name)
        flag = field.name.replace("_", "-")
        positional = POSITIONAL in marks
        default = default_of(field)
        shown = f"`{flag.upper()}`" if positional else f"`--{flag}`"
        if default is True:
            shown += f", `--no-{flag}`"
        text = documented(owner).get(field.name, "")
        cells = (shown, values_of(hint), default_text(default), escaped(text))
        yield Option(owner, field.name, cells)


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


def default_text(default: Any) -> str:
    if default is MISSING:
        return "required"
    if default is None or default == ():
        return "–"
    if isinstance(default, bool):
        return "yes" if default else "no"
    values = default if isinstance(default, tuple) else (default,)
    return " ".join(f"`{escaped(str(value))}`" for value in values)


def values_of(hint: Any) -> str:
    """The values of an option, in words."""
    hint, _ = stripped(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(values_of(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
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


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(settings() + "\n")
