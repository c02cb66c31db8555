"""Prompts made of class names, the training and evaluation samples of CLIP's text side."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_text

SLOT = "{}"

# Equal for two names that are the same to a model.
Key = Callable[[str], Hashable]


@dataclass(frozen=True)
class Prompt:
    """A text and its class."""

    text: str
    label: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).digest()


def fold_name(name: str) -> str:
    """A name in NFC and lower case with single spaces, as CLIP's own tokenizer reads it.

    Not casefolded: that tokenizer has other tokens for straße than for strasse.
    """
    return " ".join(unicodedata.normalize("NFC", name).lower().split())


def read_names(given: Sequence[str], option: str, key: Key = fold_name) -> list[str]:
    """The given names, or the names in a text file, one per line; empty lines are ignored.

    Args:
        given: names, or a single path that ends in .txt.
        option: the command-line option, for messages.
        key: equal for two names that are the same to the model.

    Raises:
        UserError: the file cannot be read, there is no name, or a name occurs twice.
    """
    if len(given) > 1 and any(name.endswith(".txt") for name in given):
        raise UserError(f"{option}: give names, or one .txt file that holds them all")
    path = Path(given[0]) if len(given) == 1 and given[0].endswith(".txt") else None
    if path is None:
        names = [name.strip() for name in given]
    else:
        try:
            names = read_text(path, "utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give a UTF-8 text file") from error
    names = [name.strip() for name in names if name.strip()]
    where = path or option
    if not names:
        raise UserError(f"{where}: holds no name; give one per line")
    counts = Counter(map(key, names))
    if twice := sorted(name for name in names if counts[key(name)] > 1):
        same = next(name for name in names if key(name) == key(twice[0]))
        as_other = "" if same == twice[0] else f", as {same!r} is the same to the model"
        raise UserError(f"{where}: {twice[0]!r} is there twice{as_other}; remove one")
    return names


def check_apart(forget: Iterable[str], preserve: Iterable[str], key: Key = fold_name) -> None:
    """Check that no name is both in `forget` and in `preserve`; `key` as in `read_names`.

    Raises:
        UserError: a name is in both.
    """
    kept = {key(name): name for name in preserve}
    if both := sorted(name for name in forget if key(name) in kept):
        name, other = both[0], kept[key(both[0])]
        as_other = "" if name == other else f", the latter as {other!r}"
        raise UserError(
            f"--forget-text and --preserve-text both have {name!r}{as_other}; remove it from one"
        )


def prompts(names: Iterable[str], templates: Iterable[str]) -> list[Prompt]:
    """Every name in every template, name by name.

    Raises:
        UserError: a template does not have exactly one {}.
    """
    templates = list(templates)
    for template in templates:
        if template.count(SLOT) != 1:
            raise UserError(f"template {template!r}: needs one {SLOT} where the name goes")
    return [Prompt(template.replace(SLOT, name), name) for name in names for template in templates]
