"""Links in a checkpoint: followed where its files belong together, refused where they lead out."""

import shutil

import pytest

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import INDEX, SINGLE
from porting.qwen3_vision import load_vision_tower


@pytest.fixture(params=["one file", "index"])
def checkpoint(request, tiny_dir, tiny_model, tmp_path):
    """(a directory, the name of a file of its weights)."""
    path = tmp_path / "checkpoint"
    if request.param == "one file":
        shutil.copytree(tiny_dir, path)
        return path, SINGLE
    tiny_model.save_pretrained(path, max_shard_size="300KB")
    assert (path / INDEX).is_file()
    return path, min(file.name for file in path.glob("*.safetensors"))


def link(path, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(target)


def test_a_link_is_followed_within_the_directory_and_in_the_hubs_cache_only(checkpoint, tmp_path):
    """The snapshots of the cache are links to the blobs beside them."""
    directory, name = checkpoint
    repository = tmp_path / "models--x--y"
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(directory, snapshot)
    places = {"blobs/digest": True, "elsewhere/digest": False, "snapshots/0123abcd/other.bin": True}
    for place, followed in places.items():
        (snapshot / name).unlink()
        shutil.copy(directory / name, snapshot / name)
        link(snapshot / name, repository / place)
        if followed:
            load_vision_tower(snapshot)
        else:
            refused(snapshot, name, repository / place)
        (repository / place).unlink()
    # The same layout without the name that the cache has.
    other = repository / "others" / "0123abcd"
    shutil.copytree(directory, other)
    link(other / name, repository / "blobs" / "digest")
    refused(other, name, repository / "blobs" / "digest")


def refused(directory, name, target):
    with pytest.raises(UserError, match=f"{name} is a link to {target}, outside the directory"):
        load_vision_tower(directory)


def test_a_directory_that_is_all_links_is_read_from_where_its_config_lies(checkpoint, tmp_path):
    directory, name = checkpoint
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in directory.iterdir():
        (linked / file.name).symlink_to(file)
    load_vision_tower(linked)
    (tmp_path / "itself").symlink_to(directory)
    load_vision_tower(tmp_path / "itself")
    link(directory / name, tmp_path / "elsewhere" / name)
    refused(linked, name, tmp_path / "elsewhere" / name)
