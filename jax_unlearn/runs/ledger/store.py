"""The store of a ledger: images' mean rows in files that are named by their SHA-256."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jax_unlearn.data.digests import CACHED
from jax_unlearn.data.images import Contents, ImageFile
from jax_unlearn.data.prompts import Prompt
from jax_unlearn.features.extracted import LARGEST, within
from jax_unlearn.features.samples import SampleFeatures, TapRows
from jax_unlearn.models.frozen_linear import FrozenLinear
from jax_unlearn.runtime.atomic_files import fresh_file
from jax_unlearn.runtime.digests import of_bytes, of_text
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.forms import fits

STORE, SUFFIX = "store", ".safetensors"
DIGESTS, HELD_OUT, ROWS, FACTS = "digests", "held_out", "rows.", "facts"
WEIGHT, BIAS, BLANK = "weight.", "bias.", "blank."
Arrays = Mapping[str, np.ndarray]


class ImageFacts(TypedDict):
    """What a file of images has beside its arrays."""

    labels: list[str]
    names: list[str]
    texts: bool


class TowerFacts(TypedDict):
    """What the file of the Linears has beside its arrays."""

    linears: list[str]


@dataclass(frozen=True)
class StoredImages:
    """Images without their pixels, or prompts, in the order of their digests, each once.

    Attributes:
        digests: SHA-256 of each file, or of a prompt and of whether it is held out.
        held_out: which images are held out for evaluation.
        labels: their classes.
        names: where they were; the files may be gone. Of a prompt its text.
        rows: the mean of each image's tokens at the input of each Linear, or the row of a prompt.
        texts: whether these are prompts of CLIP's text side, whose classes are names.
    """

    digests: UInt8[np.ndarray, "n 32"]
    held_out: Bool[np.ndarray, " n"]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    rows: Mapping[str, Float[np.ndarray, "n d"]]
    texts: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def keys(self) -> list[bytes]:
        """The digests, to look images up by."""
        return [row.tobytes() for row in self.digests]

    @cached_property
    def _classes(self) -> np.ndarray:
        return np.array(self.labels)

    def of_classes(self, classes: Sequence[str]) -> "StoredImages":
        """The images of some classes."""
        return self.take(np.flatnonzero(np.isin(self._classes, list(classes))))

    def take(self, index: Sequence[int] | np.ndarray) -> "StoredImages":
        """Some of the images, in this order."""
        index = np.asarray(index, int)
        return StoredImages(
            self.digests[index],
            self.held_out[index],
            tuple(self.labels[i] for i in index),
            tuple(self.names[i] for i in index),
            {name: x[index] for name, x in self.rows.items()},
            self.texts,
        )

    def labelled(self, labels: Sequence[str]) -> "StoredImages":
        """The same images with other classes."""
        return replace(self, labels=tuple(labels))

    def features(self) -> SampleFeatures:
        """As the features of a run's samples."""
        count = np.arange(len(self))
        return SampleFeatures(
            tuple(self.files()), {name: TapRows(x, count) for name, x in self.rows.items()}
        )

    def files(self) -> list[Any]:
        """The images as samples, with their digests known, so that no file is read; or prompts."""
        if self.texts:
            return [Prompt(*one) for one in zip(self.names, self.labels, strict=True)]
        found = []
        for name, label, digest in zip(self.names, self.labels, self.keys, strict=True):
            file = ImageFile(Path(name), label)
            vars(file)[CACHED] = Contents(digest, None)
            found.append(file)
        return found

    def content(self) -> str:
        """Digest of which images these are, with their classes and which are held out."""
        facts = zip(self.keys, self.held_out, self.labels, strict=True)
        return of_text("\n".join(f"{key.hex()} {int(out)} {label}" for key, out, label in facts))


def joined(parts: Sequence[StoredImages]) -> StoredImages:
    """The images of all parts by digest; one that is in several is taken from the first."""
    first: dict[bytes, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for i, key in enumerate(part.keys):
            first.setdefault(key, (number, i))
    chosen = [first[key] for key in sorted(first)]
    return StoredImages(
        np.array([parts[n].digests[i] for n, i in chosen], np.uint8).reshape(-1, 32),
        np.array([parts[n].held_out[i] for n, i in chosen], bool),
        tuple(parts[n].labels[i] for n, i in chosen),
        tuple(parts[n].names[i] for n, i in chosen),
        {
            name: np.array([parts[n].rows[name][i] for n, i in chosen], np.float32)
            for name in (parts[0].rows if chosen else ())
        },
        parts[0].texts,
    )


def save_images(directory: Path, images: StoredImages) -> str:
    """Write images to the store; returns the digest that names the file."""
    arrays = {ROWS + name: x for name, x in images.rows.items()}
    arrays |= {DIGESTS: images.digests, HELD_OUT: images.held_out}
    facts = {"labels": images.labels, "names": images.names, "texts": images.texts}
    return _save(directory, arrays, facts)


def load_images(directory: Path, digest: str) -> StoredImages:
    """Images that `save_images` wrote.

    Raises:
        UserError: the file is missing or has changed.
    """
    arrays, facts = _load(directory, digest, ImageFacts)
    rows = {k.removeprefix(ROWS): x for k, x in arrays.items() if k.startswith(ROWS)}
    size = len(facts["labels"])
    whole = (
        rows
        and len(facts["names"]) == size
        and _is(arrays.get(DIGESTS), np.uint8, (size, 32))
        and _is(arrays.get(HELD_OUT), np.bool_, (size,))
        and all(_is(x, np.float32, (size, *x.shape[1:2])) and x.ndim == 2 for x in rows.values())
    )
    if not whole:
        raise _other_form(directory, digest)
    return StoredImages(
        arrays[DIGESTS], arrays[HELD_OUT], tuple(facts["labels"]), tuple(facts["names"]), rows,
        facts["texts"],
    )  # fmt: skip


@dataclass(frozen=True)
class StoredTower:
    """What a solve needs of a tower: the Linears, and each projector's output of a blank image."""

    linears: tuple[FrozenLinear, ...]
    blank: Mapping[str, Float[np.ndarray, " e"]]


def save_tower(directory: Path, tower: StoredTower) -> str:
    """Write the Linears to the store; returns the digest that names the file."""
    arrays = {BLANK + name: row for name, row in tower.blank.items()}
    for one in tower.linears:
        arrays |= {WEIGHT + one.name: one.weight, BIAS + one.name: one.bias}
    return _save(directory, arrays, {"linears": [one.name for one in tower.linears]})


def load_tower(directory: Path, digest: str) -> StoredTower:
    """What `save_tower` wrote; raises as `load_images` does."""
    arrays, facts = _load(directory, digest, TowerFacts)
    linears = []
    for name in facts["linears"]:
        weight, bias = arrays.get(WEIGHT + name), arrays.get(BIAS + name)
        if weight is None or bias is None or weight.ndim != 2:
            raise _other_form(directory, digest)
        numbers = (x.astype(np.float32) for x in (weight, bias))
        if bias.shape != weight.shape[:1] or not all(within(x, LARGEST) for x in numbers):
            raise _other_form(directory, digest)
        linears.append(FrozenLinear(name, weight, bias))
    blank = {k.removeprefix(BLANK): x for k, x in arrays.items() if k.startswith(BLANK)}
    sizes = {one.projector: one.shape[:1] for one in linears}
    if {name: row.shape for name, row in blank.items()} != sizes:
        raise _other_form(directory, digest)
    return StoredTower(tuple(linears), blank)


def _is(array: np.ndarray | None, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether there is an array of this dtype and shape, of numbers to compute with."""
    if array is None or array.dtype != dtype or array.shape != shape:
        return False
    return within(array.astype(np.float32), LARGEST)


def _other_form(directory: Path, digest: str) -> UserError:
    return UserError(
        f"{path_of(directory, digest)}: has another form than a ledger writes; restore the ledger "
        "from a copy"
    )


def path_of(directory: Path, digest: str) -> Path:
    """The file of the store with this digest."""
    return directory / STORE / (digest + SUFFIX)


def _save(directory: Path, arrays: Arrays, facts: Mapping[str, Any]) -> str:
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One entry, because safetensors writes several in any order.
    data = save(dense, metadata={FACTS: json.dumps(facts)})
    digest = of_bytes(data)
    path = path_of(directory, digest)
    if not path.is_file() or of_bytes(path.read_bytes()) != digest:
        with fresh_file(path, overwrite=True) as partial:
            partial.write_bytes(data)
    return digest


def _load(directory: Path, digest: str, form: type) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    path = path_of(directory, digest)
    cure = "restore it from a copy"
    try:
        if of_bytes(path.read_bytes()) != digest:
            raise UserError(f"{path}: has changed since it was written; {cure}")
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get(FACTS, "null"))
        if not fits(facts, form):
            raise _other_form(directory, digest)
        return arrays, facts
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, and ledger.jsonl names it; {cure}") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {cure}") from error
