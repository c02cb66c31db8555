"""Names of classes as prompts: what CLIP's text side is trained on and judged by."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.runtime.errors import UserError

SLOT = "{}"


@dataclass(frozen=True)
class Prompt:
    """A text and the class that it names."""

    text: str
    label: str

    @property
    def digest(self) -> bytes:
        """Tells prompts apart, as an image's bytes do."""
        return hashlib.sha256(self.text.encode()).digest()


def read_names(given: Sequence[str], option: str) -> list[str]:
    """The names themselves, or those of a text file with one a line; empty lines do not count.

    Args:
        given: names, or a single path that ends in .txt.
        option: of the command line, for the message.

    Raises:
        UserError: no such file, no name in it, or a name twice.
    """
    if len(given) > 1 and any(name.endswith(".txt") for name in given):
        raise UserError(f"{option}: give names, or one .txt file that holds them all")
    path = Path(given[0]) if len(given) == 1 and given[0].endswith(".txt") else None
    if path is None:
        names = [name.strip() for name in given]
    else:
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give a UTF-8 text file") from error
    names = [name.strip() for name in names if name.strip()]
    where = path or option
    if not names:
        raise UserError(f"{where}: holds no name; give one a line")
    if twice := sorted({name for name in names if [*map(alike, names)].count(alike(name)) > 1}):
        raise UserError(f"{where}: {twice[0]!r} is there twice; remove one")
    return names


def alike(name: str) -> str:
    """What CLIP's tokenizer sees of a name: neither capitals nor how many spaces."""
    return " ".join(name.casefold().split())


def check_apart(forget: Iterable[str], preserve: Iterable[str]) -> None:
    """Refuse a name to forget and to keep at once.

    Raises:
        UserError: names it.
    """
    kept = set(map(alike, preserve))
    if both := sorted(name for name in forget if alike(name) in kept):
        raise UserError(
            f"--forget-text and --preserve-text both have {both[0]!r}; remove it from one"
        )


def prompts(names: Iterable[str], templates: Iterable[str]) -> list[Prompt]:
    """Every name in every template, the templates of one name together.

    Raises:
        UserError: a template has not exactly one place for the name.
    """
    templates = list(templates)
    for template in templates:
        if template.count(SLOT) != 1:
            raise UserError(f"template {template!r}: needs one {SLOT} where the name goes")
    return [Prompt(template.replace(SLOT, name), name) for name in names for template in templates]
