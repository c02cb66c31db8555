"""docs/settings.md: every option of every command, generated from the dataclasses."""

import sys
from collections.abc import Iterator
from typing import get_args

from benchmarks.markdown import table_of
from jax_unlearn.runs import command_line
from jax_unlearn.runs.ledger import command_line as ledger
from jax_unlearn.runs.settings.options import Option, options_of, summary


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
            rows = [cells(option) for option in options if option.group is group]
            sections.append(table_of(["option", "values", "default", "meaning"], rows))
    return "\n\n".join(sections).replace("---:", "---")


def same_meaning(one: Option, other: Option | None) -> bool:
    """Whether an option has the same meaning in two commands."""
    return other is not None and one.text == other.text


def commands() -> Iterator[tuple[str, type, str]]:
    """Name, dataclass and description of each command, in the order of `--help`; run first."""
    found = []
    for annotated in get_args(command_line.Command):
        kind, command = get_args(annotated)
        if kind is command_line.Ledger:
            # A command that has commands of its own.
            inner = map(get_args, get_args(ledger.Request))
            found += [(f"{command.name} {one.name}", own, summary(own)) for own, one in inner]
            continue
        found.append((command.name, kind, command.description or summary(kind)))
    yield from sorted(found, key=lambda one: one[0] != "run")


def cells(option: Option) -> list[str]:
    """A row of the table."""
    shown = f"`{option.flag}`"
    if option.default is True:
        shown += f", `--no-{option.flag.removeprefix('--')}`"
    kind, _, many = option.values.partition(";")
    chosen = kind.split(", ")
    values = ", ".join(f"`{value}`" for value in chosen) if len(chosen) > 1 else kind
    values += f";{many}" if many else ""
    return [shown, values, default(option), escaped(option.text)]


def default(option: Option) -> str:
    shown = option.shown_default
    if shown in ("", "required", "yes", "no") or isinstance(option.default, bool):
        return shown or "–"
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    return " ".join(f"`{escaped(str(value))}`" for value in values)


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(settings() + "\n")
