"""The four groups of images: what is read before they are split, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.data.dataset import SampleSettings, collect_images
from jax_unlearn.runtime.errors import UserError


def noise(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(("forget/robot", "preserve/cat", "preserve/dog")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / name / f"{i}.png").write_bytes(noise(10 * number + i))
    return tmp_path


def settings(folders, **more):
    sides = {"forget": folders / "forget", "preserve": folders / "preserve"}
    return SampleSettings(**{"checkpoint": folders, **sides, **more})


def test_an_unreadable_image_is_left_out_before_the_split_and_named(folders):
    (held,) = collect_images(settings(folders), 0).forget_held_out
    held.path.write_bytes(held.path.read_bytes()[:60])
    found = collect_images(settings(folders), 0)
    assert len(found.forget) == 3
    assert len(found.forget_held_out) == 1
    ((name, why),) = found.unreadable
    assert name == str(held.path)
    assert why
    with pytest.raises(UserError, match=f"{held.path.name}: cannot be read"):
        collect_images(settings(folders), 0, strict=True)


def test_a_folder_of_which_nothing_can_be_read_is_one_line(folders):
    for file in (folders / "forget" / "robot").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of its 5 images can be read; .*0\.png: cannot"):
        collect_images(settings(folders), 0)


def test_broken_files_with_the_same_bytes_are_no_copies_of_an_image(folders):
    for side in ("forget/robot", "preserve/cat"):
        (folders / side / "broken.png").write_bytes(b"no image")
    assert len(collect_images(settings(folders), 0).unreadable) == 2


def test_folders_inside_one_another_need_a_concept(folders):
    inside = settings(folders, forget=folders / "preserve" / "cat")
    with pytest.raises(UserError, match=r"one is inside the other; .*--concept 'cat'"):
        collect_images(inside, 0)
    both = settings(folders, forget=folders / "preserve", concept="cat")
    assert {file.label for file in collect_images(both, 0).forget} == {"cat"}


def test_what_lies_beside_the_images_is_counted(folders):
    (folders / "preserve" / "labels.csv").write_text("a,b\n" * 20)
    assert collect_images(settings(folders), 0).left_out.counts == {".csv file": 1}
    both = settings(folders, forget=folders / "preserve", concept="cat")
    assert collect_images(both, 0).left_out.counts == {".csv file": 1}
