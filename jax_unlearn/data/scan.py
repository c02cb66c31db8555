"""Find the files below a folder, and recognise images by their content."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

# Files and folders of operating systems and tools, which contain no samples.
SYSTEM = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN"}
# Formats that Pillow identifies but does not decode itself.
NOT_DECODED = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Number of first bytes by which a file is identified.
PREFIX = 32


@dataclass
class LeftOut:
    """Files and folders that are not samples: their number by kind, and an example of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def add(self, kind: str, path: Path) -> None:
        """Count a path once, also where one folder is searched for both sides."""
        if path in self.seen:
            return
        self.seen.add(path)
        self.counts[kind] += 1
        self.examples.setdefault(kind, printable(str(path)))

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"left out: {kind} ({count}), for example {self.examples[kind]}"
            for kind, count in sorted(self.counts.items())
        ]


def printable(text: str) -> str:
    """A name made safe for output: in Unicode's composed form (NFC), on one line, valid.

    Bytes that are not UTF-8, control characters and line breaks become escapes like \\xe9.
    """
    composed = unicodedata.normalize("NFC", text)
    if composed.isprintable():
        return composed
    return "".join(_escaped(c) if _needs_escape(c) else c for c in composed)


def _needs_escape(character: str) -> bool:
    # Control characters, surrogates (undecodable bytes), line and paragraph separators.
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    # Python represents an undecodable byte b as U+DC00 + b.
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"


def files_below(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Every file below a folder, except hidden ones; follows links, visits each real folder once.

    Args:
        folder: the folder.
        left_out: counts hidden and system files and folders, and folders that cannot be listed.
    """
    seen: set[str] = set()

    def failed(error: OSError) -> None:
        left_out.add("folder that cannot be listed", Path(os.fsdecode(error.filename)))

    for at, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        here = Path(at)
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if hidden(name)]:
            folders.remove(name)
            left_out.add("hidden or system folder", here / name)
        folders.sort()
        for name in names:
            if hidden(name):
                left_out.add("hidden or system file", here / name)
            else:
                yield here / name


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one of an operating system or tool."""
    return (name.startswith(".") and name not in (".", "..")) or name in SYSTEM


def kind_of(path: Path) -> str | None:
    """The kind of a file that is not an image, such as ".txt file"; None for an image.

    A file that cannot be opened counts as an image, so that it is reported with the reason.
    """
    if not path.is_file():
        return "broken link" if path.is_symlink() else "file that is not a regular file"
    try:
        with path.open("rb") as file:
            prefix = file.read(PREFIX)
    except OSError:
        return None
    return None if is_image(path.name, prefix) else other_kind(path.name)


def other_kind(name: str) -> str:
    """The kind of a file that is not an image, by its suffix."""
    return f"{Path(name).suffix.lower() or 'suffixless'} file"


def is_image(name: str, prefix: bytes) -> bool:
    """Whether a file is an image by its first bytes or its suffix.

    A file with the suffix of an image and other content counts as an image, so that it is reported.
    """
    formats = image_formats()
    if Image.registered_extensions().get(Path(name).suffix.lower()) in formats:
        return True
    return len(prefix) == PREFIX and any(_accepts(one, prefix) for one in formats)


def image_formats() -> list[str]:
    """The formats that Pillow decodes itself."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_DECODED]


def _accepts(name: str, prefix: bytes) -> bool:
    _, accept = Image.OPEN[name]
    # `accept` may return a text that says what is missing to decode the format. PPM is excluded
    # because it accepts any file that starts with "P".
    return accept is not None and name != "PPM" and accept(prefix) is True
