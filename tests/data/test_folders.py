"""Folders of images: what is found, how it is decoded, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.data.folders import find_images
from jax_unlearn.data.images import ImageFile, ImageReader, read_image
from jax_unlearn.data.splits import check_disjoint, split_held_out
from jax_unlearn.runtime.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(mode="RGB", size=(8, 4)):
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def test_folders_are_searched_to_any_depth_and_the_first_sub_folder_is_the_class(tmp_path):
    for name in ("b.PNG", "cat/x.jpg", "cat/deep/er/y.webp", "dog/z.gif", "dog/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("not an image")
        else:
            two_halves().save(path)
    found = find_images(tmp_path, "forget")
    names = [(str(file.path.relative_to(tmp_path)), file.label) for file in found]
    assert names == [
        ("b.PNG", "forget"),
        ("cat/deep/er/y.webp", "cat"),
        ("cat/x.jpg", "cat"),
        ("dog/z.gif", "dog"),
    ]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "RGBA", "LA", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    grey = mode in ("L", "1", "LA", "I;16")
    source = Image.new("RGB", (8, 8), (255, 255, 255) if grey else RED)
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    else:
        image = source.convert(mode)
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    pixel = np.asarray(read_image(path)).astype(int)
    assert pixel.shape == (8, 8, 3)
    expected = 40_000 >> 8 if mode == "I;16" else np.array((255, 255, 255) if grey else RED)
    assert np.abs(pixel - expected).max() <= 3


def test_transparency_becomes_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    two_halves().save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == (4, 8)
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((0, 7)) == BLUE


def test_a_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").getpixel((0, 0)) == RED


def broken(tmp_path):
    two_halves().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "c.jpg").write_text("no image at all")
    two_halves().save(tmp_path / "d.png")
    return find_images(tmp_path, "forget")


def test_broken_images_are_named_and_skipped(tmp_path):
    reader = ImageReader()
    assert [index for index, _ in reader.read(broken(tmp_path))] == [0, 3]
    assert [Path(name).name for name, _ in reader.skipped] == ["b.png", "c.jpg"]


def test_strict_stops_at_the_first_broken_image(tmp_path):
    with pytest.raises(UserError, match=r"b\.png: cannot be read"):
        list(ImageReader(strict=True).read(broken(tmp_path)))


def test_missing_and_empty_folders_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "nowhere", "forget")
    with pytest.raises(UserError, match="no images here"):
        find_images(tmp_path, "forget")


def files(tmp_path, **counts):
    """Empty of images, but each file has bytes of its own."""
    made = [ImageFile(tmp_path / f"{c}{i}", c) for c, n in counts.items() for i in range(n)]
    for file in made:
        file.path.write_text(file.path.name)
    return made


def test_a_seeded_fifth_of_each_class_is_held_out(tmp_path):
    listed = files(tmp_path, cat=10, dog=3, owl=1)
    train, test = split_held_out(listed, seed=0)
    assert sorted(train + test, key=str) == sorted(listed, key=str)
    assert [sum(f.label == c for f in test) for c in ("cat", "dog", "owl")] == [2, 1, 0]
    assert split_held_out(listed, seed=0) == (train, test)
    assert any(split_held_out(listed, seed=s) != (train, test) for s in range(1, 4))


def test_copies_are_held_out_together(tmp_path):
    listed = files(tmp_path, cat=10)
    for file in listed[5:]:
        file.path.write_text("the same")
    for seed in range(6):
        train, test = split_held_out(listed, seed)
        assert len(test) in (2, 6)
        assert not {f.path.read_text() for f in train} & {f.path.read_text() for f in test}


def test_one_image_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="one image"):
        split_held_out(files(tmp_path, cat=1), seed=0)


def test_the_same_image_in_two_groups_is_refused_by_name(tmp_path):
    two_halves().save(tmp_path / "a.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    first, second = (ImageFile(tmp_path / name, "x") for name in ("a.png", "copy.png"))
    with pytest.raises(UserError, match=r"copy\.png: the same image as .*a\.png"):
        check_disjoint({"to forget": [first], "to preserve": [second]})
    check_disjoint({"to forget": [first, second], "to preserve": []})
