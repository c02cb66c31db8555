"""Which class name a sub-folder has: by a file of names, by its own name, by underscores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jax_unlearn.data.images import ImageFile
from jax_unlearn.data.prompts import Key, Prompt, prompts
from jax_unlearn.data.scan import printable
from jax_unlearn.runtime.errors import UserError


@dataclass
class FolderNames:
    """Names of sub-folders from a file; folders that it does not list keep their own name.

    path: the file, or None. names: name by folder. used: the folders that were found so far.
    """

    path: Path | None
    names: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path | None) -> "FolderNames":
        """Read a file with a folder, a tab and its name in each line; empty lines are ignored.

        Raises:
            UserError: the file cannot be read, a line has another form, or a folder occurs twice.
        """
        if path is None:
            return cls(None)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give a UTF-8 text file") from error
        names: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            parts = [printable(part.strip()) for part in line.split("\t")]
            if len(parts) != 2 or not all(parts):
                raise UserError(f"{path}: line {number} is not a folder, a tab and its name")
            if parts[0] in names:
                raise UserError(f"{path}: line {number} names {parts[0]!r} again; remove one")
            names[parts[0]] = parts[1]
        return cls(path, names)

    def apply(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """The files with the names of their folders as classes."""
        self.used |= {file.label for file in files} & set(self.names)
        return [
            replace(file, label=self.names[file.label]) if file.label in self.names else file
            for file in files
        ]

    def check_used(self) -> None:
        """Refuse a file that lists none of the folders.

        Raises:
            UserError: none of its folders was found.
        """
        if self.path is not None and not self.used:
            raise UserError(f"--names {self.path}: none of its folders is among the sub-folders")


def match_folders(labels: Iterable[str], names: Iterable[str], key: Key) -> dict[str, str]:
    """The name of each sub-folder that has one.

    Underscores of a folder count as spaces if no folder has the name without that.

    Args:
        labels: the sub-folders.
        names: the names to find.
        key: equal for two names that are the same to the model.
    """
    named = {key(name): name for name in names}
    labels = sorted(set(labels))
    found = {label: named[key(label)] for label in labels if key(label) in named}
    taken = set(found.values())
    for label in labels:
        name = named.get(key(spaced(label)))
        if label not in found and name is not None and name not in taken:
            found[label] = name
    return found


def matches(concept: str, labels: Iterable[str]) -> set[str]:
    """The classes that contain all words of a concept, with underscores as spaces if none does."""
    words, labels = set(printable(concept).lower().split()), set(labels)
    found = {label for label in labels if words <= set(label.lower().split())}
    return found or {label for label in labels if words <= set(spaced(label).lower().split())}


def folder_prompts(labels: Sequence[str], template: str) -> list[Prompt]:
    """One prompt for each class of a folder, with spaces for underscores.

    A class keeps its underscores if another one has the name with spaces.
    """
    texts = [label if spaced(label) in labels else spaced(label) for label in labels]
    made = prompts(texts, [template])
    return [replace(one, label=label) for label, one in zip(labels, made, strict=True)]


def spaced(label: str) -> str:
    """A folder's name with spaces for underscores."""
    return " ".join(label.replace("_", " ").split())
