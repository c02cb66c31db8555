"""ledger.jsonl: every request and withdrawal in a chain of digests, which is only appended to."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.digests import of_text
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.forms import fits
from jax_unlearn.runtime.text_files import read_text

FILE = "ledger.jsonl"
Kind = Literal["init", "add", "undo"]
CURE = "restore it from a copy"
# `before` of the first entry.
NONE = ""


class Fields(TypedDict):
    """The fields of a line, without its digest."""

    kind: Kind
    id: str
    what: dict[str, Any]
    time: str
    before: str


class Begun(TypedDict):
    """`what` of an init: the settings, digests, and the files of the store."""

    settings: dict[str, Any]
    linears: dict[str, str]
    contents: str
    tower: str
    preserve: str
    left_out: list[str]
    image_means: bool


class Added(TypedDict):
    """`what` of an add: a concept, its classes, and its file of the store if it has one."""

    concept: str
    classes: list[str]
    images: str | None


class Withdrawn(TypedDict):
    """`what` of an undo."""


FORMS: dict[str, type] = {"init": Begun, "add": Added, "undo": Withdrawn}


@dataclass(frozen=True)
class Entry:
    """One line of the file.

    Attributes:
        kind: what was done.
        id: the request that was added or withdrawn; empty for init.
        what: the settings of the ledger, or what a request is about; empty for undo.
        time: when, in UTC.
        before: digest of the entry before.
    """

    kind: Kind
    id: str
    what: Mapping[str, Any]
    time: str
    before: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the entry, which holds the digest of the one before it."""
        return of_text(_dump(asdict(self)))

    def line(self) -> str:
        """The entry with its digest, as it is in the file."""
        return _dump({**asdict(self), "digest": self.digest}) + "\n"


def new_entry(
    kind: Kind, id: str = "", what: Mapping[str, Any] | None = None, before: Sequence[Entry] = ()
) -> Entry:
    """An entry that follows others, with the present time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    # As it is read again: tuples are lists in JSON.
    plain = json.loads(_dump(what or {}))
    return Entry(kind, id, plain, now, before[-1].digest if before else NONE)


def append(directory: Path, entry: Entry, before: Sequence[Entry]) -> None:
    """Add an entry to the file, which is replaced as a whole; the caller holds the lock.

    Args:
        directory: the ledger.
        entry: the entry.
        before: the entries that the file has, of which the last is named by `entry.before`.

    Raises:
        UserError: the file system refuses; the file is then unchanged.
    """
    replace_files(directory, {FILE: "".join(one.line() for one in [*before, entry])})


def read_chain(directory: Path) -> list[Entry]:
    """The entries of a ledger.

    Raises:
        UserError: the file is missing, or an entry is damaged, missing or out of its place; names
            the line.
    """
    path = directory / FILE
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the directory of a ledger (`ledger init` makes one), or "
            f"{CURE}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {CURE}") from error
    return list(_checked(path, text.splitlines(keepends=True)))


def _checked(path: Path, lines: Sequence[str]) -> Iterator[Entry]:
    before = NONE
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            raise UserError(f"{path}: line {number} is cut off; {CURE}")
        entry = _entry(line)
        if entry is None:
            raise UserError(f"{path}: line {number} has changed since it was written; {CURE}")
        if entry.before != before or (entry.kind == "init") != (number == 1):
            raise UserError(
                f"{path}: line {number} does not follow the one before it, so a line is missing or "
                f"out of its place; {CURE}"
            )
        yield entry
        before = entry.digest
    if not lines:
        raise UserError(f"{path}: is empty; {CURE}")


def _entry(line: str) -> Entry | None:
    """The entry of a line; None if it is not exactly as it was written."""
    try:
        content = json.loads(line)
        content.pop("digest")
        if not fits(content, Fields) or not fits(content["what"], FORMS[content["kind"]]):
            return None
        entry = Entry(**content)
        return entry if entry.line() == line else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # Whatever is no entry has been changed.
        return None


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
