"""Images in shards of every format: found, named, decoded and distinguished as files are."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageReader, read_image
from jax_unlearn.data.scan import LeftOut
from jax_unlearn.runtime.assets import ASSETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.temporary_files import temporary_folder

FILES = sorted((ASSETS / "images" / "train" / "cat").iterdir())[:3]
DATA = [file.read_bytes() for file in FILES]
MODES = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}
# A compressed tar is unpacked with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*unpacked into a temporary file")


def write_tar(path, members):
    mode = MODES.get(path.name.rpartition(".")[2], "w")
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, method)


def write_archive(path, members):
    (write_zip if path.suffix == ".zip" else write_tar)(path, members)


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def faults(folder):
    """(name below the folder, fault or None) of each image."""
    found = find_images(folder, "x")
    return [(file.name.removeprefix(f"{folder}/"), file.contents.fault) for file in found]


@pytest.fixture(params=["one.tar", "one.zip", "one.TAR.gz", "one.tgz", "one.tar.bz2", "one.tar.xz"])
def shards(request, tmp_path):
    (tmp_path / "cat").mkdir()
    write_archive(
        tmp_path / request.param,
        {
            "../dog/a.png": DATA[0],
            "/b.x": DATA[1],
            "/b.cls": b"owl\n",
            "notes.txt": b"A text that is long enough to be looked at.",
            "c.cls": b"none",
            "__MACOSX/dog/._a.png": bytes(99),
        },
    )
    write_records(tmp_path / "cat" / "two.arrayrecord", DATA)
    return tmp_path / request.param


def test_images_in_shards_are_those_that_were_put_there(shards):
    left_out, folder = LeftOut(), shards.parent
    found = find_images(folder, "forget", left_out)
    assert [(file.name.removeprefix(f"{folder}/"), file.label) for file in found] == [
        *((f"cat/two.arrayrecord[{i}]", "cat") for i in range(3)),
        (f"{shards.name}/../dog/a.png", "dog"),
        (f"{shards.name}//b.x", "owl"),
    ]
    assert left_out.counts == {
        ".txt file": 1,
        ".cls file without an image": 1,
        "hidden or system file": 1,
    }
    for file, original in zip(found, [*FILES, *FILES[:2]], strict=True):
        # In another order, and as a worker process gets them.
        source = pickle.loads(pickle.dumps(file)).source()
        pixels = np.asarray(read_image(source))
        np.testing.assert_array_equal(pixels, np.asarray(read_image(original)))
    assert found[0].digest == found[3].digest != found[1].digest
    assert found[3].entry == f"dog/{shards.name}/../dog/a.png: {len(DATA[0])}"


def test_a_shard_alone_will_do(shards):
    assert len(find_images(shards, "forget")) == 2
    records = find_images(shards.parent / "cat" / "two.arrayrecord", "forget")
    assert {file.label for file in records} == {"forget"}


def test_a_compressed_tar_is_unpacked_once(tmp_path):
    write_tar(tmp_path / "one.tgz", {"a.png": DATA[0], "b.png": DATA[1]})
    with pytest.warns(UserWarning, match=r"one\.tgz: unpacked into a temporary file .* MB in "):
        first = find_images(tmp_path, "forget")
    copies = list(temporary_folder().iterdir())
    assert [file.file for file in first] == [file.file for file in find_images(tmp_path, "keep")]
    assert list(temporary_folder().iterdir()) == copies
    # Another file under the same name is unpacked again.
    write_tar(tmp_path / "one.tgz", {"c.png": DATA[2]})
    (other,) = find_images(tmp_path, "forget")
    assert other.source().getvalue() == DATA[2]


def test_no_space_for_the_copy_is_one_line(tmp_path, monkeypatch):
    write_tar(tmp_path / "one.tgz", {"a.png": DATA[0]})

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(UserError, match=r"one\.tgz: cannot be unpacked .*No space.*set TMPDIR"):
        find_images(tmp_path, "x")


def test_links_in_a_tar_are_followed(tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, kind, target in (
            ("cat/a.png", tarfile.REGTYPE, ""),
            ("dog/hard.png", tarfile.LNKTYPE, "cat/a.png"),
            ("owl/soft.png", tarfile.SYMTYPE, "../cat/a.png"),
            ("owl/gone.png", tarfile.SYMTYPE, "../cat/b.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 0 if target else len(DATA[0])
            tar.addfile(info, io.BytesIO(DATA[0]))
    left_out = LeftOut()
    found = find_images(tmp_path, "x", left_out)
    assert [file.label for file in found] == ["cat", "dog", "owl"]
    assert len({file.digest for file in found}) == 1
    assert left_out.counts == {"link or device in a tar": 1}


def test_a_broken_image_in_a_shard_is_skipped_by_name(tmp_path):
    write_tar(tmp_path / "one.tar", {"a.png": DATA[0], "b.png": b"no image"})
    reader = ImageReader()
    assert [index for index, _ in reader.read(find_images(tmp_path, "x"))] == [0]
    ((name, reason),) = reader.skipped
    assert (name, reason) == (f"{tmp_path}/one.tar/b.png", "not an image that Pillow knows")


def test_a_cut_or_damaged_tar_is_read_up_to_there_and_the_rest_is_named(tmp_path):
    shard = tmp_path / "one.tar"
    write_tar(shard, {f"{name}.png": data for name, data in zip("abc", DATA, strict=True)})
    whole = shard.read_bytes()
    second = 512 + -(-len(DATA[0]) // 512) * 512
    shard.write_bytes(whole[: second + 512 + 99])
    (a, a_fault), (b, b_fault), (rest, rest_fault) = faults(tmp_path)
    assert (a, a_fault, b, rest) == ("one.tar/a.png", None, "one.tar/b.png", "one.tar")
    assert b_fault == f"the shard ends after 99 of its {len(DATA[1])} bytes"
    assert rest_fault.startswith("the shard is cut or damaged after b.png (unexpected end of data)")
    for changed, why in (
        (whole[:second] + bytes([whole[second] ^ 255]) + whole[second + 1 :], "header of the next"),
        (whole[:second], "no end mark"),
        (whole[:second] + bytes(1024) + whole[second:], "data after the end mark"),
    ):
        shard.write_bytes(changed)
        (_, a_fault), (rest, rest_fault) = faults(tmp_path)
        assert (a_fault, rest) == (None, "one.tar")
        assert why in rest_fault


# More than the memory, and more than a number of bytes can be.
@pytest.mark.parametrize("size", [2**60, 2**70])
def test_a_tar_that_claims_more_memory_than_there_is(tmp_path, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    huge = info.tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "one.tar"
    path.write_bytes(huge + bytes(1024))
    with pytest.raises(UserError, match="claims more memory than there is"):
        find_images(tmp_path, "x")
    write_tar(path, {"a.png": DATA[0]})
    path.write_bytes(
        path.read_bytes().rstrip(b"\0").ljust(-(-len(DATA[0]) // 512) * 512 + 512, b"\0")
    )
    with path.open("ab") as file:
        file.write(huge + bytes(1024))
    (_, good), (_, rest) = faults(tmp_path)
    assert good is None
    assert "damaged after a.png (a header claims more memory than there is)" in rest


def test_a_cut_compressed_tar_is_read_up_to_there(tmp_path):
    shard = tmp_path / "one.tar.gz"
    noise = np.random.default_rng(0).bytes(1 << 20)
    write_tar(shard, {"a.png": DATA[0], "b.png": noise, "c.png": DATA[2]})
    shard.write_bytes(shard.read_bytes()[: 1 << 19])
    (a, a_fault), (b, b_fault), (rest, rest_fault) = faults(tmp_path)
    assert (a, a_fault, b, rest) == ("one.tar.gz/a.png", None, "one.tar.gz/b.png", "one.tar.gz")
    assert "the shard ends after" in b_fault
    assert "after b.png (EOFError: Compressed file ended" in rest_fault


def test_damaged_and_encrypted_members_of_a_zip_are_named(tmp_path):
    shard = tmp_path / "one.zip"
    members = {"a.png": DATA[0], "b.png": DATA[1], "c.cls": b"\xff", "c.png": DATA[2]}
    write_zip(shard, members, zipfile.ZIP_STORED)
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(DATA[1]) + 99] ^= 255
    # Bit 0 of the flags, in the local header and in the directory, means encryption.
    changed[whole.index(b"PK\3\4") + 6] |= 1
    changed[whole.index(b"PK\1\2") + 8] |= 1
    shard.write_bytes(changed)
    (a, a_fault), (b, b_fault), (c, c_fault) = faults(tmp_path)
    assert (a, a_fault) == ("one.zip/a.png", "encrypted")
    assert (b, b_fault) == ("one.zip/b.png", "BadZipFile: Bad CRC-32 for file 'b.png'")
    assert (c, c_fault.split(":")[0]) == ("one.zip/c.png", "its class, c.cls, cannot be read")


def test_a_damaged_record_is_named(tmp_path):
    shard = tmp_path / "one.arrayrecord"
    write_records(shard, DATA)
    changed = bytearray(shard.read_bytes())
    changed[changed.index(DATA[1][-60:])] ^= 255
    shard.write_bytes(changed)
    (_, first), (name, fault), (_, last) = faults(tmp_path)
    assert (first, name, last) == (None, "one.arrayrecord[1]", None)
    assert "hash mismatch" in fault


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.tgz", "x.arrayrecord", "x.parquet"])
@pytest.mark.parametrize("first", [b"", b"\x1f\x8b"])
def test_what_is_no_shard_is_one_line(tmp_path, name, first):
    (tmp_path / name).write_bytes(first + b"nothing of that kind" * 100)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(.*\); repair or remove it"):
        find_images(tmp_path, "x")
