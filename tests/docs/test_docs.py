"""README and docs/: short, built without a warning, not older than what they are made from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import write_docs
from benchmarks.write_docs import ROOT
from jax_unlearn.evaluate.vlm.questions import load_questions

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# With the console script of the environment that runs the tests.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert next(i for i, line in enumerate(lines) if "Limits" in line) < 25


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "python-api" / "index.html").read_text()
    for package in ("jax_unlearn", "porting"):
        public = {name: getattr(__import__(package), name) for name in __import__(package).__all__}
        # An earlier name of something has no entry of its own.
        own = [name for name, thing in public.items() if getattr(thing, "__name__", "") == name]
        assert not [name for name in own if f'id="{package}.{name}"' not in page]


@pytest.mark.parametrize("page", write_docs.PAGES)
def test_no_generated_part_is_older_than_its_source(page):
    text = (ROOT / page).read_text()
    assert text == write_docs.written(page), "run `python -m benchmarks.write_docs`"
    known = {block.name for block in write_docs.BLOCKS if block.page == page}
    assert set(re.findall(r"^<!-- (?!end )(.+) -->$", text, re.M)) == known


def test_settings_are_told_with_their_meaning():
    text = (ROOT / "docs" / "settings.md").read_text()
    assert "| `--lambda-preserve` | number | `2.5` |" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert all(len(line.split(" | ")[3].strip("| ")) > 3 for line in rows)


def anchors(path):
    """What a heading of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {re.sub(r" +", "-", text.strip()) for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def blocks(language, page="quickstart"):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_the_example_of_questions_is_one(tmp_path):
    (tmp_path / "questions.json").write_text(blocks("json", "questions"))
    name, made_of, closed = load_questions(tmp_path / "questions.json", ["cat", "dog"])
    assert name.paraphrases == ("what does the picture show?",)
    assert name.synonyms == {"kitten": "cat", "tomcat": "cat", "puppy": "dog"}
    assert (made_of.is_open, closed.is_open) == (True, False)


def keys(part):
    """Every key of a tree of JSON that is not the name of a path, a Linear or a class."""
    if isinstance(part, dict):
        for key, value in part.items():
            if "merger" not in key:
                yield key
            if key != "drift_by_class":
                yield from keys(value)


def test_the_quickstart_and_recipes_run_and_their_files_are_documented(tmp_path):
    # With the compiler as users have it.
    environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    commands = []
    for page in ("quickstart", "serve"):
        commands.append(["bash", "-euo", "pipefail", "-c", blocks("sh", page)])
        commands.append([sys.executable, "-c", blocks("python", page)])
    for command in commands:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    page = (ROOT / "docs" / "run-directory.md").read_text()
    files = {path.name for path in (tmp_path / "run").iterdir()}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not [name for name in files if name not in page]
    assert not [key for key in keys(metrics) if f"`{key}`" not in page]
