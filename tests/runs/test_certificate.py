"""A certificate says what a run is made of; any byte that has changed since is found."""

import json
import shutil

import pytest

from jax_unlearn.runs.certificate import threat_model
from jax_unlearn.runs.cli import main
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.verify import Verification, compare_samples
from jax_unlearn.runtime.digests import of_file, read_sealed, sealed
from tests.running import CLOSED_FORM, arguments, read


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """A copy of the images and the checkpoint, with a certified run and a file of questions."""
    place = tmp_path_factory.mktemp("certified")
    for name in ("checkpoint", "forget", "preserve"):
        shutil.copytree(folder / name, place / name)
    answers = {"red triangle": "triangle", "blue circle": "circle", "astronaut": "person"}
    questions = [{"question": "what is this?", "answers": answers}]
    (place / "questions.json").write_text(json.dumps(questions))
    options = {"questions": place / "questions.json"} | CLOSED_FORM
    main(arguments(place, place / "run", **options))
    main(["attack", str(place / "run"), "--kinds", "readers"])
    main(["certify", str(place / "run")])
    return place


def verify(place, capsys, *options):
    """(exit code, JSON) of `verify`; of an error its last line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place / "run"), "--json", *map(str, options)])
    said = capsys.readouterr()
    if ended.value.code == 2:
        return 2, said.err.splitlines()[-1]
    return ended.value.code, json.loads(said.out)


def test_a_certificate_says_everything(place):
    run, found = place / "run", read(place / "run" / "certificate.json")
    metrics = read_sealed(run / "metrics.json")
    given = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert set(found["run_files"]) == given - {"certificate.json"}
    assert found["statistics"] == of_file(run / "statistics.safetensors")
    targets = metrics["adapter"]["targets"]
    assert set(found["checkpoint"]["linears"]) == set(targets)
    assert set(found["edited"]) == {f"model.visual.{name}.weight" for name in targets}
    weights = place / "checkpoint" / "model.safetensors"
    assert found["checkpoint"]["files"]["model.safetensors"] == of_file(weights)
    assert len(found["samples"]["files"]) == 30
    assert found["samples"]["groups"]["forget"]["classes"] == {"red triangle": 8}
    questions = place / "questions.json"
    assert found["questions"] == {str(questions): of_file(questions)}
    assert found["settings"]["rank"] == 2
    assert {"python", "jax", "jax-unlearn"} <= set(found["versions"])
    # Every figure stands beside a command.
    commands = [group["command"] for group in found["figures"]]
    assert commands == [
        f"jax-unlearn run --config {run / 'config.json'} --out OUT",
        f"jax-unlearn evaluate {run}",
        f"jax-unlearn attack {run}",
    ]
    values = {k: v for group in found["figures"][:2] for k, v in group["values"].items()}
    assert values == metrics
    assert found["figures"][2]["values"] == read_sealed(run / "attacks.json")
    assert "any edit of open weights is undone" in found["threat_model"]["no_protection_from"][0]
    share = f"{100 * metrics['refitted']['accuracy_after']:.1f} %"
    assert any(share in line for line in found["threat_model"]["can_be_read"])


def test_an_unchanged_run_is_verified_with_its_figures(place, capsys):
    code, found = verify(place, capsys, "--digest", read(place / "run/certificate.json")["digest"])
    assert (code, found["verified"], found["differences"]) == (0, True, [])
    recomputed = found["recomputed"]
    assert {"forget.accuracy_after", "paths.merger.drift.relative"} <= set(recomputed)
    assert all(then == pytest.approx(now, abs=1e-9) for then, now in recomputed.values())
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place / "run")])
    said = capsys.readouterr().out.splitlines()
    assert (ended.value.code, said[-1]) == (0, "verified")
    assert any("figures: " in line and "tolerance 0.02" in line for line in said)


def test_a_changed_byte_in_any_file_is_found(place, capsys):
    run, image = place / "run", next((place / "forget").rglob("*.png"))
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "certificate.json"]
    assert len(files) == 10
    checkpoint = [path for path in (place / "checkpoint").iterdir() if path.is_file()]
    assert len(checkpoint) >= 3
    for path in [*files, *checkpoint, image, place / "questions.json"]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        code, found = verify(place, capsys, "--no-figures")
        path.write_bytes(whole)
        assert code == 1, path
        assert any(path.name in one and "has changed" in one for one in found["differences"]), path
    assert verify(place, capsys, "--no-figures")[0] == 0


def test_missing_and_new_files_are_found(place, capsys):
    moved = place / "moved"
    image = next((place / "preserve").rglob("*.png"))
    for path in (image, place / "run" / "report.html"):
        path.rename(moved)
        code, found = verify(place, capsys, "--no-figures")
        moved.rename(path)
        assert code == 1
        assert any(path.name in one and "is missing" in one for one in found["differences"])
    for path in (image.with_name("more.png"), place / "run" / "more.txt"):
        path.write_bytes(image.read_bytes() + b"1")
        code, found = verify(place, capsys, "--no-figures")
        path.unlink()
        assert code == 1
        assert any(f"{path.name}: is new" in one for one in found["differences"])
    (place / "checkpoint").rename(moved)
    code, found = verify(place, capsys, "--no-figures")
    assert (code, "give --checkpoint" in found["differences"][0]) == (1, True)
    assert verify(place, capsys, "--no-figures", "--checkpoint", moved)[0] == 0
    moved.rename(place / "checkpoint")


def test_a_figure_that_was_never_measured_is_found(place, tmp_path, capsys):
    """Also if every digest was made anew: what is computed again is another one."""
    shutil.copytree(place / "run", tmp_path / "run")
    before = read(tmp_path / "run" / "certificate.json")["digest"]
    file = tmp_path / "run" / "metrics.json"
    metrics = read_sealed(file)
    metrics["refitted"]["accuracy_after"] = 0.75
    file.write_text(sealed(metrics))
    main(["certify", str(tmp_path / "run")])
    code, found = verify(tmp_path, capsys)
    assert code == 1
    (line,) = found["differences"]
    assert line.startswith("figures: refitted.accuracy_after was 0.7500 and is ")
    code, found = verify(tmp_path, capsys, "--no-figures", "--digest", before)
    assert code == 1
    assert "is not that of --digest" in found["differences"][0]


def test_a_certificate_that_was_changed_or_cannot_be_read(place, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert "certificate.json: no such file; write it with" in verify(tmp_path, capsys)[1]
    file = place / "run" / "certificate.json"
    whole = file.read_text()
    for text, code, said in (
        (whole.replace('"form": 1', '"form": 2'), 2, "has another form"),
        (whole[:-40], 2, "cannot be read"),
        ("[]", 2, "cannot be read"),
        (whole.replace('"rank": 2', '"rank": "x"', 1), 2, "has another form"),
        (whole.replace('"rank": 2', '"rank": 3', 1), 1, "certificate.json: has changed since"),
    ):
        assert text != whole
        file.write_text(text)
        found, what = verify(place, capsys, "--no-figures")
        assert (found, said in str(what)) == (code, True), what
    file.write_text(whole)
    words = ["--no-figures", "--tolerance", "0.1"]
    assert "--tolerance: has no effect here" in verify(place, capsys, *words)[1]
    assert "--ask -1: must be at least 0" in verify(place, capsys, "--ask", "-1")[1]


def test_samples_and_settings_of_two_runs_cannot_be_compared(tmp_path):
    """As a certificate that was made up may have them."""
    config, found = RunConfig.of(checkpoint=tmp_path, out=tmp_path), Verification()
    then = {"files": {}, "fingerprint": "0"}
    assert not compare_samples(then, config.replace(statistics=tmp_path), found)
    (line,) = found.differences
    assert line.startswith("samples: cannot be compared: fitted on saved statistics")


def test_only_an_intact_run_is_certified(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "history.jsonl").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["certify", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "history.jsonl: has changed since it was written" in capsys.readouterr().err


def test_the_answers_are_asked_for_again(asked, tmp_path, capsys):
    shutil.copytree(asked, tmp_path / "run")
    run = str(tmp_path / "run")
    main(["certify", run, "--no-whole-checkpoint"])
    assert read(tmp_path / "run" / "certificate.json")["checkpoint"]["files"] == {}
    words = ["--no-figures", "--ask", "2"]
    assert "answers.jsonl is not there" in verify(tmp_path, capsys, *words)[1]
    main(["evaluate", run, "--vlm"])
    code, found = verify(tmp_path, capsys, "--no-figures")
    assert code == 1
    assert any("answers.jsonl: is new" in one for one in found["differences"])
    main(["certify", run, "--no-whole-checkpoint"])
    code, found = verify(tmp_path, capsys, *words)
    assert (code, found["asked"]) == (0, 2)
    said = read(tmp_path / "run" / "certificate.json")["threat_model"]["hidden"][0]
    assert "“what is this?” names the concept in 100.0 %" in said


def test_the_threat_model_names_what_the_fit_optimised_against():
    metrics = {"forget": {"accuracy_before": 1.0, "accuracy_after": 0.0, "chance": 0.5}}
    found = {
        name: threat_model(metrics | {"optimizer": name})["can_be_read"][-1]
        for name in ("stand_in", "leace", "adam")
    }
    assert "means and covariances" in found["stand_in"]
    assert "linear readers" in found["leace"]
    assert "towards their target" in found["adam"]
