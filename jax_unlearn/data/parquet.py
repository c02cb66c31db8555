"""Images in parquet files, as Hugging Face `datasets` writes them."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jax_unlearn.data.images import ImageFile, reason
from jax_unlearn.data.members import Slice, Unreadable
from jax_unlearn.data.scan import LeftOut, printable
from jax_unlearn.data.unpacked import Copy, temporary_copy, version
from jax_unlearn.runtime.errors import UserError

# Rows that are decoded at a time, and bytes that are read at a time.
ROWS, BUFFER = 64, 1 << 20
# Names of a label column, the first that exists.
LABELS = ("label", "labels")


class Row(NamedTuple):
    """A row's class, or None for that of the folder; and where its image is, or why it has none."""

    label: str | None
    offset: int
    size: int
    fault: str | None


class Columns(NamedTuple):
    """The columns that are read. names: class names of an integer label."""

    image: str
    label: str | None
    names: Sequence[str] | None


def parquet_images(shard: Path, label: str, left_out: LeftOut) -> Iterator[ImageFile]:
    """The images of a parquet file, in its order, read from an unpacked copy.

    The image column is the one that the metadata of `datasets` calls an image, or else a struct of
    bytes and path. The label column is `label` or `labels`, or else the only ClassLabel; without
    one the images have the class `label`.

    Args:
        shard: the parquet file.
        label: the class of images for which the file gives none.
        left_out: counts the file if it has no column of images.

    Raises:
        UserError: pyarrow is not installed, it is not clear which column to read, or the copy
            cannot be written.
    """
    file, rows = _rows(shard, *version(shard))
    if file is None:
        left_out.add(".parquet file without a column of images", shard)
        return
    for number, row in enumerate(rows):
        given, inside = printable(row.label or label), f"[{number}]"
        if row.fault is None:
            yield Slice(shard, given, inside, file, row.offset, row.size)
        else:
            yield Unreadable(shard, given, inside, row.fault)


@cache
def _rows(shard: Path, changed: int, size: int) -> tuple[Path | None, list[Row]]:
    """(file with the images' bytes, rows); (None, []) without a column of images."""
    with parquet_file(shard) as file:
        columns = _columns(shard, file.schema_arrow)
        if columns is None:
            return None, []
        with temporary_copy(shard) as (copy, path):
            groups = range(file.num_row_groups)
            return path, [row for group in groups for row in _group(file, group, columns, copy)]


def parquet_file(shard: Path) -> Any:
    """An open parquet file of pyarrow.

    Raises:
        UserError: pyarrow is not installed.
    """
    # Imported here because it is an extra.
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(
            f"{printable(str(shard))}: needs pyarrow; pip install 'jax-unlearn[parquet]'"
        ) from error
    # Read piece by piece; otherwise a whole row group is held, which may be the whole file.
    return ParquetFile(shard, buffer_size=BUFFER, pre_buffer=False)


def _group(file: Any, group: int, columns: Columns, copy: Copy) -> Iterator[Row]:
    """The rows of a row group; those that follow damage cannot be read."""
    wanted = [name for name in (columns.image, columns.label) if name is not None]
    left = file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=wanted):
            images = batch.column(columns.image).to_pylist()
            labels = batch.column(columns.label).to_pylist() if columns.label else images
            for image, label in zip(images, labels, strict=True):
                yield _row(image, label, columns, copy)
                left -= 1
    except (OSError, ValueError) as error:
        # pyarrow raises these for damaged pages.
        for _ in range(left):
            yield Row(None, 0, 0, reason(error))


def _row(image: dict[str, Any] | None, label: Any, columns: Columns, copy: Copy) -> Row:
    data = image and image["bytes"]
    named = None
    if columns.label is not None:
        names = columns.names
        known = label is not None and (names is None or 0 <= label < len(names))
        if not known:
            return Row(None, 0, 0, f"has no class: its {columns.label} is {label}")
        named = str(label) if names is None else names[label]
    if not data:
        where = image and image["path"]
        why = f"has no bytes, only the path {printable(where)}" if where else "has no image"
        return Row(named, 0, 0, why)
    return Row(named, copy.write(data), len(data), None)


def _columns(shard: Path, schema: Any) -> Columns | None:
    """The columns to read; None if none has images."""
    import pyarrow.types as types

    features = _features(schema)

    def choose(what: str, preferred: tuple[str, ...], fits: Callable[[str], bool]) -> str | None:
        found = [name for name in schema.names if fits(name)]
        first = [name for name in preferred if name in found]
        if len(found) > 1 and not first:
            raise UserError(
                f"{printable(str(shard))}: {len(found)} columns of {what} ({', '.join(found)}); "
                f"keep one, or call one {preferred[0]!r}"
            )
        return (first or found or [None])[0]

    def has_images(name: str) -> bool:
        kind = schema.field(name).type
        is_struct = types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}
        return is_struct and features.get(name, {}).get("_type", "Image") == "Image"

    def is_class(name: str) -> bool:
        return name in LABELS or features.get(name, {}).get("_type") == "ClassLabel"

    image = choose("images", ("image",), has_images)
    if image is None:
        return None
    label = choose("classes", LABELS, is_class)
    if label is None:
        return Columns(image, None, None)
    kind = schema.field(label).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = types.is_string(kind) or types.is_large_string(kind)
    if not (types.is_integer(kind) or texts):
        raise UserError(
            f"{printable(str(shard))}: the column {label!r} is of {kind}, and must be of integers "
            "or texts, one class for each image"
        )
    return Columns(image, label, None if texts else features.get(label, {}).get("names"))


def _features(schema: Any) -> dict[str, Any]:
    """The features by column that `datasets` writes into a file's metadata."""
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return {
        name: feature
        for name, feature in found.get("info", {}).get("features", {}).items()
        if isinstance(feature, dict)
    }
