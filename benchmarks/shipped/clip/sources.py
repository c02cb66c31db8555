"""Downloads from package registries: icon sets from npm, and CLIP's BPE merges from PyPI."""

import gzip
import json
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

from .concepts import CONCEPTS, IconSet

BPE_PACKAGE = "open_clip_torch==3.3.0"
BPE_FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"


def read_merges(downloads: Path) -> list[tuple[str, str]]:
    """CLIP's BPE merges, the most frequent pair first."""
    if not list(downloads.glob("open_clip_torch-*.whl")):
        _run([sys.executable, "-m", "pip", "download", "--no-deps", BPE_PACKAGE], downloads)
    wheel = next(downloads.glob("open_clip_torch-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(BPE_FILE)).decode().split("\n")
    # The first line is the file's version, the last is empty.
    return [(left, right) for left, right in (line.split() for line in lines[1:-1])]


def read_drawings(icons: IconSet, downloads: Path) -> list[tuple[str, str, str]]:
    """(concept, icon, SVG) of every drawing of a concept in a set, without duplicates."""
    icon_set = json.loads(_member(icons, downloads, "icons.json"))
    parents = {name: alias["parent"] for name, alias in icon_set.get("aliases", {}).items()}
    known = icon_set["icons"]
    found = []
    for concept, names in CONCEPTS.items():
        own = dict.fromkeys(parents.get(name, name) for name in names)
        found += [(concept, name, _svg(icon_set, known[name])) for name in own if name in known]
    missing = set(CONCEPTS) - {concept for concept, _, _ in found}
    if missing:
        raise SystemExit(f"{icons.name} {icons.version} has no drawing of {', '.join(missing)}")
    return found


def _svg(icon_set: dict, icon: dict) -> str:
    """An icon as an SVG document; sizes default to those of the set."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


@cache
def _member(icons: IconSet, downloads: Path, member: str) -> bytes:
    archive = downloads / f"iconify-json-{icons.name}-{icons.version}.tgz"
    if not archive.exists():
        _run(["npm", "pack", "--silent", f"@iconify-json/{icons.name}@{icons.version}"], downloads)
    with tarfile.open(archive) as opened:
        file = opened.extractfile(f"package/{member}")
        if file is None:
            raise SystemExit(f"{archive}: no {member} in it")
        return file.read()


def _run(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{' '.join(command)}: {error}") from error
