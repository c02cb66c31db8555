"""No output overwrites an input, and only what jax-unlearn wrote is removed."""

import shutil

import pytest

from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import check_free, check_output
from tests.running import arguments

RUN = ("config.json", "metrics.json", "history.jsonl", "report.html", "statistics.safetensors")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def written(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


def test_an_output_is_apart_from_every_input(tmp_path):
    """Whether it is given by its own name or through a link; a file may not be held either."""
    inputs = {"--forget": [tmp_path / "a" / "b"], "--questions": [tmp_path / "q" / "x.json"]}
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    written(tmp_path / "q", "x.json")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "dangling").symlink_to(tmp_path / "a" / "b" / "new")
    overlapping = {
        "a/b": "is --forget",
        "a": "holds --forget",
        "a/b/c": "lies in --forget",
        "a/b/new": "lies in --forget",
        "a/b/c/../../../a": "holds --forget",
        "link": "is --forget",
        "link/new": "lies in --forget",
        "dangling": "lies in --forget",
        "q": "holds --questions",
        "q/x.json": "is --questions",
        ".": "holds --forget",
    }
    for out, expected in overlapping.items():
        with pytest.raises(UserError, match=f"^--out .*: {expected} .* which is read"):
            check_output(tmp_path / out, inputs)
    for out in ("a2", "a/b2", "q/y", "new/a/b"):
        check_output(tmp_path / out, inputs)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError, match="circle: Too many levels of symbolic links"):
        check_output(tmp_path / "circle", inputs)


def test_the_output_of_a_command_is_apart_from_its_inputs(run, folder, tmp_path, capsys):
    """Of an earlier run too, though its images are not read again."""
    names = written(tmp_path, "names.txt", "questions.json") / "names.txt"
    forget, name = folder / "forget", next((folder / "forget").iterdir()).name
    questions = {"questions": tmp_path / "questions.json"}
    commands = [
        ("is --forget", arguments(folder, forget)),
        ("lies in --forget", arguments(folder, forget / name)),
        ("holds --checkpoint", arguments(folder, folder)),
        ("lies in --preserve", ["sweep", *arguments(folder, folder / "preserve" / "x")[1:9]]),
        ("holds --questions", arguments(folder, tmp_path, **questions)),
        ("is --statistics", ["run", "--statistics", run, "--out", run]),
        ("is --forget", ["run", "--statistics", run, "--out", forget]),
        (
            "holds --forget-text",
            [
                *("run", "--checkpoint", folder / "checkpoint", "--forget-text", names),
                *("--preserve-text", "cat", "--out", tmp_path),
            ],
        ),
        ("is the run", ["export", run, "--out", run, "--format", "merged"]),
        ("lies in the run", ["export", run, "--out", run / "adapter"]),
        ("is --checkpoint", ["export", run, "--out", folder / "checkpoint"]),
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for expected, command in commands:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, command), "--overwrite"])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f": {expected} " in line, line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "names",
    [
        (*RUN, *(f"adapter/{name}" for name in ADAPTER)),
        ("config.json", "statistics.safetensors", "sweep.csv", "sweep.json", "sweep.png"),
        ADAPTER,
        (*RUN, ".metrics.json.0123abcd.partial"),
        ("jax_unlearn_undo/originals.safetensors", "config.json", "README.md"),
    ],
)
def test_what_we_wrote_may_be_replaced(tmp_path, names):
    check_free(written(tmp_path / "out", *names), overwrite=True)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("photo.jpg",), "out"),
        (("config.json", "model.safetensors"), "out"),
        ((*RUN, "photo.jpg"), "out/photo.jpg"),
        ((*RUN, "photos/a.jpg"), "out/photos"),
        ((*RUN, "adapter/notes.txt"), "out/adapter/notes.txt"),
        ((*ADAPTER, "adapter/adapter_config.json"), "out/adapter"),
        ((*ADAPTER, "config.json"), "out/config.json"),
        ((*RUN, ".photo.jpg.0123abcd.partial"), "out/.photo.jpg.0123abcd.partial"),
    ],
)
def test_what_we_did_not_write_stays(tmp_path, names, named):
    out = written(tmp_path / "out", *names)
    with pytest.raises(UserError, match="not made by jax-unlearn") as caught:
        check_free(out, overwrite=True)
    assert str(caught.value).startswith(f"{tmp_path / named}: ")


def test_a_link_in_a_run_stays(tmp_path):
    out = written(tmp_path / "out", *RUN)
    shutil.move(out / "report.html", tmp_path / "report.html")
    (out / "report.html").symlink_to(tmp_path / "report.html")
    with pytest.raises(UserError, match=r"report.html: not made by jax-unlearn"):
        check_free(out, overwrite=True)
