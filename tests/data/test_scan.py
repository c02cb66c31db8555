"""Which files are images, by their content, and what else is counted and named."""

import io
import os
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.data.scan import LeftOut, printable
from jax_unlearn.runtime.errors import UserError


def picture(colour="red", kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(buffer, kind)
    return buffer.getvalue()


def found(folder, left_out=None):
    files = find_images(folder, "x", left_out)
    return [(os.fsencode(file.path.relative_to(folder)).decode("latin-1"), file.label)
            for file in files]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.bmp", "BMP"),
        ("a.tiff", "TIFF"),
        ("a.avif", "AVIF"),
        ("a", "PNG"),
        ("a.txt", "GIF"),
        ("a.JPG", "WEBP"),
        ("a.png", "JPEG2000"),
    ],
)
def test_an_image_is_known_by_its_content(tmp_path, name, kind):
    (tmp_path / name).write_bytes(picture(kind=kind))
    assert found(tmp_path) == [(name, "x")]
    assert read_image(tmp_path / name).size == (9, 7)


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    for name in ("notes.txt", "more.TXT", "Pythonic.py", "page.pdf", "README"):
        (tmp_path / name).write_text("Python or text, which is long enough to be looked at.")
    left_out = LeftOut()
    assert found(tmp_path, left_out) == [("a.png", "x")]
    kinds = {".txt file": 2, ".py file": 1, ".pdf file": 1, "suffixless file": 1}
    assert left_out.counts == kinds
    assert f"left out: .pdf file (1), for example {tmp_path}/page.pdf" in left_out.lines()
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"no images here \(left out: .*README"):
        find_images(tmp_path, "x")


def test_hidden_and_system_folders_are_left_out_and_counted(tmp_path):
    for folder in ("cat", ".ipynb_checkpoints", "__MACOSX/cat"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(picture())
    (tmp_path / "cat" / "._a.png").write_bytes(bytes(99))
    left_out = LeftOut()
    assert found(tmp_path, left_out) == [("cat/a.png", "cat")]
    assert left_out.counts == {"hidden or system folder": 2, "hidden or system file": 1}


def test_links_are_followed_and_each_real_folder_comes_once(tmp_path):
    real, images = tmp_path / "elsewhere", tmp_path / "images"
    real.mkdir()
    images.mkdir()
    (real / "a.png").write_bytes(picture())
    (images / "cat").symlink_to(real)
    (images / "circle").symlink_to(images)
    (images / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(images / "pipe.png")
    left_out = LeftOut()
    assert found(images, left_out) == [("cat/a.png", "cat")]
    assert left_out.counts == {"broken link": 1, "file that is not a regular file": 1}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(picture())
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    left_out = LeftOut()
    assert found(tmp_path, left_out) == [("cat/a.png", "cat")]
    assert left_out.lines() == [
        f"left out: folder that cannot be listed (1), for example {tmp_path}/locked"
    ]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (b"caf\xe9", "caf\\xe9"),
        ("café".encode(), "café"),
        ("cafe\u0301".encode(), "café"),
        (b"two\nlines", "two\\x0alines"),
        (b"[red] 'x'", "[red] 'x'"),
    ],
)
def test_a_class_is_called_so_that_it_can_be_shown_and_written(tmp_path, name, label):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    with open(folder + b"/a.png", "wb") as file:
        file.write(picture())
    (one,) = find_images(tmp_path, "x")
    assert one.label == label
    one.label.encode()
    one.name.encode()
    assert "\n" not in one.name
    assert one.contents.fault is None


def test_names_are_shown_without_control_characters():
    assert printable("a\x1b[31mb\u2028c\udce9") == "a\\x1b[31mb\\x2028c\\xe9"


def test_a_tars_hidden_members_are_left_out_and_its_images_known_by_content(tmp_path):
    members = {
        "cat/a": picture(),
        "__MACOSX/cat/._a.png": bytes(99),
        "cat/.DS_Store": bytes(99),
        "cat/notes.md": b"# A text that is long enough to be looked at",
    }
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    left_out = LeftOut()
    (one,) = find_images(tmp_path, "x", left_out)
    assert (one.name, one.label) == (f"{tmp_path}/one.tar/cat/a", "cat")
    assert left_out.counts == {"hidden or system file": 2, ".md file": 1}


def test_an_image_is_turned_though_another_exif_tag_is_damaged(tmp_path):
    tags = [struct.pack("<HHLHH", 0x112, 3, 1, 6, 0), struct.pack("<HHL", 0x128, 7, 4) + b"abcd"]
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(tags) + bytes(4)
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (7, 9)


def test_a_truncated_image_has_a_fault_and_the_digest_of_its_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:999])
    (tmp_path / "b.png").write_bytes(picture())
    broken, whole = (ImageFile(tmp_path / name, "x").contents for name in ("a.png", "b.png"))
    assert broken.fault
    assert whole.fault is None
    assert broken.digest != whole.digest
    gone = ImageFile(tmp_path / "c.png", "x").contents
    assert "No such file" in gone.fault
