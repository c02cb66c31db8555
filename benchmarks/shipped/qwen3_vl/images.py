"""The image folders: easy-VQA's drawings, and crops of scikit-image's free photographs.

The training and test parts of a photo are disjoint: every fourth cell of a grid is a test cell,
test crops are inside one test cell, and training crops overlap none.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
DRAWINGS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)

Window = tuple[int, int, int]  # left, top, side


@dataclass(frozen=True)
class Photo:
    """A photograph, which is one class: its file, its grid of cells, and the part that is used.

    Cell (column c, row r) is a test cell where ``(c + 2 r) % 4 == phase``.
    """

    name: str
    file: str
    columns: int
    rows: int
    phase: int = 1
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom

    def load(self) -> Image.Image:
        image = Image.open(_package_dir("skimage") / "data" / self.file).convert("RGB")
        return image.crop(self.box) if self.box else image


# The phases put the main objects (a face, a shuttle, a helmet) into training cells. The boxes leave
# out parts that could be of any photo: the black around the retina, the blur behind the cat.
PHOTOS = (
    Photo("astronaut", "astronaut.png", 4, 4, 2),
    Photo("brick", "brick.png", 4, 4),
    Photo("cameraman", "camera.png", 4, 4),
    Photo("cat", "chelsea.png", 4, 3, 1, (0, 0, 370, 300)),
    Photo("coffee", "coffee.png", 5, 3),
    Photo("coins", "coins.png", 5, 4),
    Photo("galaxy", "hubble_deep_field.jpg", 5, 4),
    Photo("grass", "grass.png", 4, 4),
    Photo("gravel", "gravel.png", 4, 4),
    Photo("handwriting", "text.png", 5, 2),
    Photo("retina", "retina.jpg", 4, 4, 1, (205, 205, 1205, 1205)),
    Photo("rocket", "rocket.jpg", 6, 4),
    Photo("tissue", "ihc.png", 4, 4, 0),
)
CLASSES = DRAWINGS + tuple(photo.name for photo in PHOTOS)


def _package_dir(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the recipe needs the package {name}: pip install 'jax-unlearn[test]'")
    return Path(spec.submodule_search_locations[0])


def easy_vqa_questions(split: str) -> list[tuple[str, str, int]]:
    """The author's (question, answer, image number) of ``"train"`` or ``"test"``."""
    path = _package_dir("easy_vqa") / "data" / split / "questions.json"
    return [(question, answer, number) for question, answer, number in json.loads(path.read_text())]


def drawing_files(split: str) -> list[tuple[str, Path]]:
    """(class, file) of every picture of a split whose class follows from its questions."""
    folder = _package_dir("easy_vqa") / "data" / split / "images"
    facts: dict[int, set[str]] = {}
    for question, answer, number in easy_vqa_questions(split):
        facts.setdefault(number, set()).update(_facts(question, answer))
    named = [(_name(facts[n]), folder / f"{n}.png") for n in sorted(facts)]
    return [(name, path) for name, path in named if name in DRAWINGS]


def _facts(question: str, answer: str) -> set[str]:
    """Facts about the picture from a question and its answer: "blue", "not circle", ..."""
    words = question.rstrip("?").split()
    if answer not in ("yes", "no"):
        return {answer, *(w for w in words if w in SHAPES + COLORS)}
    present = (answer == "yes") != ("not" in words or "no" in words)
    return {w if present else f"not {w}" for w in words if w in SHAPES + COLORS}


def _name(facts: set[str]) -> str:
    return f"{_pick(facts, COLORS)} {_pick(facts, SHAPES)}"


def _pick(facts: set[str], words: tuple[str, ...]) -> str:
    """The word that is stated, or the only one that is not denied."""
    left = [w for w in words if w in facts] or [w for w in words if f"not {w}" not in facts]
    return left[0] if len(left) == 1 else "unknown"


def test_cells(photo: Photo, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the test cells of a photo of ``size``."""
    width, height = size[0] / photo.columns, size[1] / photo.rows
    return [
        (round(c * width), round(r * height), round((c + 1) * width), round((r + 1) * height))
        for r in range(photo.rows)
        for c in range(photo.columns)
        if (c + 2 * r) % 4 == photo.phase
    ]


def windows(photo: Photo, size: tuple[int, int], split: str, seed: int) -> Iterator[Window]:
    """Random squares of one split of a photo, 0.8 to 1 cell wide, endless and without repeats."""
    rng = np.random.default_rng([seed, split == "test", *photo.name.encode()])
    cells = test_cells(photo, size)
    cell = int(min(size[0] / photo.columns, size[1] / photo.rows))
    taken = np.zeros((size[1], size[0]), bool)
    for left, top, right, bottom in cells:
        taken[top:bottom, left:right] = True
    seen: set[Window] = set()
    while True:
        side = int(rng.integers(int(0.8 * cell), cell + 1))
        box = cells[rng.integers(len(cells))] if split == "test" else (0, 0, *size)
        left = int(rng.integers(box[0], box[2] - side + 1))
        top = int(rng.integers(box[1], box[3] - side + 1))
        window = (left, top, side)
        free = split == "test" or not taken[top : top + side, left : left + side].any()
        if free and window not in seen:
            seen.add(window)
            yield window


def regions(name: str, split: str, count: int, seed: int = 0) -> int | None:
    """The number of regions that `count` crops of a photo show; overlapping crops are one region.

    None for a class that is not a photo, whose images are independent.
    """
    photo = next((photo for photo in PHOTOS if photo.name == name), None)
    if photo is None:
        return None
    stream = windows(photo, photo.load().size, split, seed)
    groups: list[list[Window]] = []
    for window in islice(stream, count):
        touching = [group for group in groups if any(overlap(window, one) for one in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([window, *(one for group in touching for one in group)])
    return len(groups)


def overlap(one: Window, other: Window) -> bool:
    """Whether two squares share a pixel."""
    return all(one[i] < other[i] + other[2] and other[i] < one[i] + one[2] for i in (0, 1))


def photo_crops(photo: Photo, split: str, count: int, seed: int = 0) -> list[bytes]:
    """``count`` crops as JPEG files; images for training have JPEG artefacts like shipped ones."""
    image = photo.load()
    stream = windows(photo, image.size, split, seed)
    return [_jpeg(image, next(stream)) for _ in range(count)]


def _jpeg(image: Image.Image, window: Window) -> bytes:
    left, top, side = window
    # Cropped first, because resizing with a box would blend in pixels outside the box.
    crop = image.crop((left, top, left + side, top + side))
    crop = crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def write_images(out: Path, train: int = 40, test: int = 25) -> None:
    """Write ``out/{train,test}/<class>/``: PNG files of the drawings, JPEG of the photos."""
    for split, count in (("train", train), ("test", test)):
        files = {name: [] for name in DRAWINGS}
        for name, path in drawing_files(split):
            files[name].append(path.read_bytes())
        for name in DRAWINGS:
            _write(out / split / name, "png", files[name][:count])
        for photo in PHOTOS:
            _write(out / split / photo.name, "jpg", photo_crops(photo, split, count))


def _write(folder: Path, suffix: str, files: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(files):
        (folder / f"{i:03d}.{suffix}").write_bytes(content)
