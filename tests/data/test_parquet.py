"""Images in parquet files of Hugging Face `datasets`: columns, classes, and rows that have none."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.scan import LeftOut
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.temporary_files import temporary_folder

DATA = [p.read_bytes() for p in sorted((ASSETS / "images" / "train" / "cat").iterdir())[:5]]
IMAGES = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(DATA)]
IMAGE, CLASS = {"_type": "Image"}, {"names": ["cat", "cafe\u0301"], "_type": "ClassLabel"}
pytestmark = pytest.mark.filterwarnings("ignore:.*unpacked into a temporary file")


def write(path, columns, features=None, **options):
    """A file as `datasets` writes it, with the features in its metadata; pyarrow infers types."""
    table = pyarrow.table(columns)
    if features:
        known = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": known})
    pyarrow.parquet.write_table(table, path, **options)


def found(folder):
    return [(file.name.removeprefix(f"{folder}/"), file.label, file.contents.fault)
            for file in find_images(folder, "x")]  # fmt: skip


def test_rows_have_the_class_of_the_label_column(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"label": [0, 1, 0, -1, None], "img": IMAGES, "caption": ["a"] * 5}
    write(path, columns, {"img": IMAGE, "label": CLASS, "caption": {}}, row_group_size=2)
    files = find_images(path, "x")
    assert [(file.name, file.label) for file in files] == [
        (f"{path}[{i}]", label) for i, label in enumerate(["cat", "café", "cat", "x", "x"])
    ]
    assert [file.source().getvalue() for file in files[:3]] == DATA[:3]
    assert [file.contents.fault for file in files[3:]] == [
        "has no class: its label is -1",
        "has no class: its label is None",
    ]
    assert files[1].entry == f"café/a.parquet[1]: {len(DATA[1])}"
    copies = set(temporary_folder().iterdir())
    assert find_images(path, "x") == files
    assert set(temporary_folder().iterdir()) == copies


@pytest.mark.parametrize(
    ("columns", "features", "labels"),
    [
        ({"labels": list("abcde")}, None, list("abcde")),
        ({"labels": pyarrow.array(list("aabbc")).dictionary_encode()}, None, list("aabbc")),
        ({"labels": [3, 4, 5, 6, 7]}, None, list("34567")),
        ({"kind": [0, 1, 1, 0, 0]}, {"kind": CLASS}, ["cat", "café", "café", "cat", "cat"]),
        ({"kind": [0, 1, 1, 0, 0]}, {}, ["owl"] * 5),
    ],
)
def test_the_label_column(tmp_path, columns, features, labels):
    (tmp_path / "owl").mkdir()
    write(tmp_path / "owl" / "a.parquet", {"image": IMAGES} | columns, features)
    assert [label for _, label, _ in found(tmp_path)] == labels


def test_rows_without_bytes_and_damaged_rows_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [IMAGES[0], {"bytes": None, "path": "b\n.png"}, None, IMAGES[3], IMAGES[4]]
    write(path, {"image": rows}, row_group_size=3, compression="gzip", use_dictionary=False)
    assert [fault for _, _, fault in found(tmp_path)[:3]] == [
        None,
        "has no bytes, only the path b\\x0a.png",
        "has no image",
    ]
    place = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    # Not at the start, where the header repeats some values.
    middle = place.data_page_offset + place.total_compressed_size - 500
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)
    first, *_, fourth, fifth = found(tmp_path)
    assert first == ("a.parquet[0]", "x", None)
    assert (fourth[0], fifth[0]) == ("a.parquet[3]", "a.parquet[4]")
    assert fourth[2] == fifth[2]
    assert "GZipCodec failed" in fourth[2]


def test_a_file_without_images_is_left_out(tmp_path):
    write(tmp_path / "a.parquet", {"image": IMAGES})
    write(tmp_path / "b.parquet", {"label": [1, 2]})
    left_out = LeftOut()
    assert len(find_images(tmp_path, "x", left_out)) == 5
    assert left_out.counts == {".parquet file without a column of images": 1}


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        ({"one": IMAGES, "two": IMAGES}, None, r"2 columns of images \(one, two\); keep one"),
        (
            {"image": IMAGES, "fine": [0] * 5, "coarse": [1] * 5},
            {"image": IMAGE, "fine": CLASS, "coarse": CLASS},
            r"2 columns of classes \(fine, coarse\); keep one, or call one 'label'",
        ),
        ({"image": IMAGES, "labels": [[1]] * 5}, None, "'labels' is of list.*one class for each"),
    ],
)
def test_columns_that_leave_a_choice_are_refused(tmp_path, columns, features, message):
    write(tmp_path / "a.parquet", columns, features)
    with pytest.raises(UserError, match=rf"a\.parquet: .*{message}"):
        find_images(tmp_path, "x")


def test_without_pyarrow_it_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", {"image": IMAGES})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"a\.parquet: needs .*pip install 'jax-unlearn\[parquet\]"):
        find_images(tmp_path, "x")
