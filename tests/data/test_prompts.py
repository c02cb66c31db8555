import pytest

from jax_unlearn.data.prompts import Prompt, check_apart, prompts, read_names
from jax_unlearn.runtime.errors import UserError


def test_names_from_the_command_line_and_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("red triangle\n\n  cat \n")
    assert read_names(["red triangle", " cat"], "--x") == ["red triangle", "cat"]
    assert read_names([str(path)], "--x") == ["red triangle", "cat"]


def test_every_name_in_every_template():
    made = prompts(["cat", "dog"], ["{}", "a {}."])
    assert made == [
        Prompt("cat", "cat"),
        Prompt("a cat.", "cat"),
        Prompt("dog", "dog"),
        Prompt("a dog.", "dog"),
    ]
    assert len({prompt.digest for prompt in made}) == 4


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_has_one_place(template):
    with pytest.raises(UserError, match=r"needs one \{\} where the name goes"):
        prompts(["cat"], [template])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no name"), ("cat\ndog\ncat\n", "'cat' is there twice")],
)
def test_a_list_that_cannot_be_meant(text, message, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_names([str(path)], "--forget-text")
    assert str(path) in str(caught.value)


def test_no_list_at_all():
    with pytest.raises(UserError, match="--preserve-text: holds no name"):
        read_names([], "--preserve-text")
    with pytest.raises(UserError, match="cannot be read"):
        read_names(["nowhere.txt"], "--preserve-text")


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="give a UTF-8 text file"):
        read_names([str(path)], "--x")


def test_a_name_in_both_lists():
    with pytest.raises(UserError, match="both have 'cat'"):
        check_apart(["dog", "cat"], ["cat", "cow"])
