"""Images in tar and ArrayRecord shards: found, named, decoded and told apart as files are."""

import io
import tarfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageReader, read_image
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError

FILES = sorted((ASSETS / "images" / "train" / "cat").iterdir())[:3]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "cat").mkdir()
    data = [file.read_bytes() for file in FILES]
    members = {"../dog/a.png": data[0], "b.x.png": data[1], "b.cls": b"owl\n", "notes.txt": b"none"}
    write_tar(tmp_path / "one.tar", members)
    write_records(tmp_path / "cat" / "two.arrayrecord", data)
    return tmp_path


def test_images_in_shards_are_those_that_were_put_there(shards):
    found = find_images(shards, "forget")
    assert [(file.name.removeprefix(f"{shards}/"), file.label) for file in found] == [
        *((f"cat/two.arrayrecord[{i}]", "cat") for i in range(3)),
        ("one.tar/../dog/a.png", "dog"),
        ("one.tar/b.x.png", "owl"),
    ]
    for file, original in zip(found, [*FILES, *FILES[:2]], strict=True):
        pixels = np.asarray(read_image(file.source()))
        np.testing.assert_array_equal(pixels, np.asarray(read_image(original)))
    assert found[0].digest == found[3].digest != found[1].digest


def test_a_shard_alone_will_do(shards):
    assert len(find_images(shards / "one.tar", "forget")) == 2
    labels = {file.label for file in find_images(shards / "cat" / "two.arrayrecord", "forget")}
    assert labels == {"forget"}


def test_a_broken_image_in_a_shard_is_skipped_by_name(tmp_path):
    write_tar(tmp_path / "one.tar", {"a.png": FILES[0].read_bytes(), "b.png": b"no image"})
    reader = ImageReader()
    assert [index for index, _ in reader.read(find_images(tmp_path, "x"))] == [0]
    ((name, reason),) = reader.skipped
    assert (name, reason) == (f"{tmp_path}/one.tar/b.png", "not an image that Pillow knows")


@pytest.mark.parametrize("name", ["x.tar", "x.arrayrecord"])
def test_what_is_no_shard_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of that kind" * 100)
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        find_images(tmp_path, "x")
