"""Settings from a YAML or JSON file, as options of the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_text
from jax_unlearn.runtime.used_if import option

# A file of this name is that of a run, with all its settings.
OF_RUN = "config.json"
# How YAML and JSON write that there is no value.
NOTHING = ("null", "~", "")


def options_in(path: Path) -> list[str]:
    """The settings in a file as options, which are parsed like those of the command line.

    Args:
        path: a YAML or JSON file with a mapping from names of settings to values, such as
            `rank: 5`; dashes in names count as underscores.

    Raises:
        UserError: the file cannot be read or is no such mapping.
    """
    # Imported here because few commands read a file.
    import yaml

    try:
        # Every value as text, since YAML takes `no` for false.
        found = yaml.load(read_text(path), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"--config {path}: cannot be read as YAML or JSON ({text})") from error
    if not isinstance(found, dict):
        raise UserError(f"--config {path}: must map names of settings to values, as `rank: 5`")
    return [word for name, value in found.items() for word in words(path, name, value)]


def words(path: Path, name: Any, value: Any) -> Iterator[str]:
    """The words of one option.

    Raises:
        UserError: the value is not a text, number, switch, or list of those.
    """
    flag = option(str(name))
    if value in ("true", "false"):
        yield flag if value == "true" else f"--no-{flag.removeprefix('--')}"
        return
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise UserError(f"--config {path}: {name}: must be a text, a number or a list of those")
    yield flag
    yield from ("None" if one in NOTHING else one for one in values)
